//! `podhold`, whose command line comes next.

fn main() {}
