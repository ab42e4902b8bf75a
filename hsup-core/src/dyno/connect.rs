//! A connection to whoever listens where a dyno is reached.

use std::{io, net::SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

/// Connects to whoever listens at `address`.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    connect_by(socket?, address).await
}

/// Connects `socket`, to itself never.
///
/// Where nobody listens, and the port is one of `ip_local_port_range`, the kernel may choose it
/// for this end as well, and TCP makes a connection of one socket (RFC 9293 §3.5, simultaneous
/// open): that nobody listens is then for us to say.
async fn connect_by(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = socket.connect(address).await?;
    if stream.peer_addr().ok() != Some(stream.local_addr()?) {
        return Ok(stream);
    }
    // A dyno is to listen there: nothing may be left of it, as TIME_WAIT would be for a minute.
    stream.set_zero_linger()?;
    Err(io::ErrorKind::ConnectionRefused.into())
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn socket(address: SocketAddr) -> TcpSocket {
        match address {
            SocketAddr::V4(_) => TcpSocket::new_v4().unwrap(),
            SocketAddr::V6(_) => TcpSocket::new_v6().unwrap(),
        }
    }

    #[test_case("127.0.0.1:0")]
    #[test_case("[::1]:0")]
    #[tokio::test]
    async fn a_socket_that_meets_itself_is_refused_and_leaves_nothing(address: &str) {
        let address = address.parse().unwrap();
        let own = socket(address);
        if own.bind(address).is_err() {
            return; // A machine without IPv6.
        }
        let address = own.local_addr().unwrap();
        let refused = connect_by(own, address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // Without SO_REUSEADDR: not even what lingers is there.
        socket(address).bind(address).unwrap();
    }

    #[test_case("127.0.0.1:0")]
    #[test_case("[::1]:0")]
    #[tokio::test]
    async fn who_listens_is_connected_to(address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let Ok(listener) = std::net::TcpListener::bind(address) else {
            return; // A machine without IPv6.
        };
        let address = listener.local_addr().unwrap();
        let stream = connect(address).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
    }
}
