//! A connection that is accepted.

use std::net::IpAddr;

use tokio::net::TcpStream;

use super::Failed;

pub(super) async fn connect(host: Option<&str>, address: IpAddr, port: u16) -> Result<(), Failed> {
    let connected = match host {
        Some(host) => TcpStream::connect((host, port)).await,
        None => TcpStream::connect((address, port)).await,
    };
    connected.map(drop).map_err(|error| format!("port {port}: {error}"))
}
