//! Ranges of addresses, and which of them the host has no use for. No I/O.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// How many ranges are looked at before none counts as free.
const CANDIDATES: u32 = 64;

/// Ranges that private networks are made of: a range moves within its own.
const PRIVATE: [(IpAddr, u8); 5] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// A range of addresses, such as `10.214.0.0/22`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The range of this length that `address` is in; `None` when no address is that long.
    pub fn around(address: IpAddr, prefix: u8) -> Option<Self> {
        let width = width(address);
        let host = u32::from(width.checked_sub(prefix)?);
        let bits = bits(address).checked_shr(host).unwrap_or(0).checked_shl(host).unwrap_or(0);
        Some(Self { address: with_bits(address, bits), prefix })
    }

    /// Length of what its addresses have in common, in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::around(address, self.prefix) == Some(*self)
    }

    /// Whether the two have addresses in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        self.address.is_ipv4() == other.address.is_ipv4()
            && Self::around(self.address, prefix) == Self::around(other.address, prefix)
    }

    /// Its `n`-th address, counted from 0.
    pub fn nth(&self, n: u32) -> IpAddr {
        with_bits(self.address, bits(self.address) | u128::from(n))
    }

    /// Place of an address in it.
    pub fn place(&self, address: IpAddr) -> Option<u32> {
        self.contains(address).then(|| u32::try_from(bits(address) - bits(self.address)).ok()).flatten()
    }

    /// The last place that a pod may have: the one after it is the broadcast address.
    pub fn last(&self) -> u32 {
        let host = u32::from(width(self.address) - self.prefix).min(16);
        (1u32 << host).saturating_sub(2)
    }

    /// The mask of the network, as bytes in the order of the network.
    pub fn mask(&self) -> Vec<u8> {
        let all = with_bits(self.address, u128::MAX >> (128 - u32::from(width(self.address))));
        let mask = Self::around(all, self.prefix).map_or(all, |mask| mask.address);
        octets(mask)
    }

    /// Its first address, as bytes in the order of the network.
    pub fn octets(&self) -> Vec<u8> {
        octets(self.address)
    }

    /// The range `n` places further on, within the private range it is in; a range that is in none does not
    /// move.
    fn moved(&self, n: u32) -> Option<Self> {
        if n == 0 {
            return Some(*self);
        }
        let home = PRIVATE.iter().filter_map(|(address, prefix)| Self::around(*address, *prefix));
        let home = home.into_iter().find(|home| home.overlaps(self) && home.prefix < self.prefix)?;
        let host = u32::from(width(self.address) - self.prefix);
        let places = 1u128 << u32::from(self.prefix - home.prefix).min(100);
        let place = (bits(self.address) - bits(home.address)) >> host;
        let place = place.checked_add(u128::from(n)).filter(|_| u128::from(n) < places)? % places;
        let address = with_bits(self.address, bits(home.address) | place << host);
        Some(Self { address, prefix: self.prefix })
    }

    /// Whether the other range is this one or one of those that are taken in its place.
    pub(super) fn leads_to(&self, other: &Self) -> bool {
        (0..CANDIDATES).any(|n| self.moved(n).as_ref() == Some(other))
    }
}

/// The first pair of ranges that no route leads into, beginning with those that are wanted; where all are
/// within wider routes, the first that no narrower or equal route leads into. `None` when there is none.
pub(super) fn choose(v4: Subnet, v6: Option<Subnet>, routes: &[Subnet]) -> Option<(Subnet, Option<Subnet>)> {
    let free = |range: &Subnet, also_within: bool| {
        !routes.iter().any(|route| {
            route.prefix > 0 && route.overlaps(range) && (!also_within || route.prefix >= range.prefix)
        })
    };
    let pick = |wanted: Subnet| {
        [false, true].into_iter().find_map(|also_within| {
            (0..CANDIDATES).filter_map(|n| wanted.moved(n)).find(|range| free(range, also_within))
        })
    };
    let v6 = match v6 {
        Some(v6) => Some(pick(v6)?),
        None => None,
    };
    Some((pick(v4)?, v6))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address of the same family.
fn with_bits(family: IpAddr, bits: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(bits & u128::from(u32::MAX)).unwrap_or(0)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

/// An address as bytes in the order of the network.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Subnet {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "give a range of addresses such as 10.214.0.0/22 or fd50:6f64::/64";
        let (address, prefix) = text.split_once('/').ok_or(form)?;
        let address: IpAddr = address.parse().map_err(|_| form)?;
        let prefix = prefix.parse().map_err(|_| form)?;
        let range = Self::around(address, prefix).ok_or(form)?;
        if range.address != address {
            return Err("the address has bits beyond the length of the range; set them to 0");
        }
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn only_ranges_are_ranges() {
        for text in
            ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/24", "fd00::/129", "x/8", "10.0.0.0/-1", "::1/64"]
        {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
        assert_eq!(range("0.0.0.0/0").prefix(), 0);
        assert_eq!(range("fd50:6f64::/64").to_string(), "fd50:6f64::/64");
    }

    #[test]
    fn addresses_have_places() {
        let range = range("10.214.0.0/22");
        assert_eq!(range.nth(257), "10.214.1.1".parse::<IpAddr>().unwrap());
        assert_eq!(range.place("10.214.1.1".parse().unwrap()), Some(257));
        assert_eq!(range.place("10.214.4.1".parse().unwrap()), None);
        assert_eq!(range.last(), 1022);
        assert_eq!(range.mask(), [255, 255, 252, 0]);
        assert_eq!("fd50::/64".parse::<Subnet>().unwrap().last(), 65534);
    }

    #[test]
    fn a_range_that_is_in_use_is_left_to_whoever_has_it() {
        let wanted = range("10.214.0.0/22");
        let choice = |routes: &[&str]| {
            let routes: Vec<Subnet> = routes.iter().map(|text| range(text)).collect();
            choose(wanted, None, &routes).map(|(v4, _)| v4.to_string())
        };
        assert_eq!(choice(&["0.0.0.0/0", "192.168.0.0/16"]).unwrap(), "10.214.0.0/22");
        assert_eq!(choice(&["10.214.3.7/32"]).unwrap(), "10.214.4.0/22");
        assert_eq!(choice(&["10.214.0.0/22", "10.214.4.0/23"]).unwrap(), "10.214.8.0/22");
        // All are within it: the first that nobody else has.
        assert_eq!(choice(&["10.0.0.0/8", "10.214.0.0/24"]).unwrap(), "10.214.4.0/22");
    }

    #[test]
    fn a_range_stays_private() {
        let last = range("192.168.252.0/22");
        assert_eq!(last.moved(1).unwrap(), range("192.168.0.0/22"));
        assert_eq!(range("203.0.113.0/24").moved(1), None);
        assert_eq!(range("fdff:ffff:ffff:ffff::/64").moved(1).unwrap(), range("fd00::/64"));
        let taken = [range("203.0.113.0/24")];
        assert_eq!(choose(range("203.0.113.0/24"), None, &taken), None);
    }
}
