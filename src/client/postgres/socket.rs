//! The socket behind a connection. sqlx gives no hand on its own and (0.9.0) leaves Nagle's
//! algorithm on, so that each small `COPY` waits 40 ms for a delayed acknowledgement; nor does it
//! notice a peer that vanished. So the socket is ours, and sqlx reaches it within the process.

use std::io::Result;
use std::time::Duration;

use rustix::net::sockopt;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpStream, UnixListener, UnixStream};

/// An idle connection is tried after this, and then this often, and given up after so many.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_COUNT: u32 = 3;
/// How long what was sent may go unacknowledged.
const UNACKNOWLEDGED_MS: u32 = 25_000;
/// Bytes handed on at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// Connects. A server's Unix socket needs none of this, nor is it there on other systems.
pub(super) async fn connect(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    let (host, port) = (options.get_host(), options.get_port());
    let local = options.get_socket().is_some() || host.starts_with('/');
    if local || !cfg!(target_os = "linux") {
        return options.connect().await;
    }
    let mut server = TcpStream::connect((host, port)).await?;
    set_options(&server)?;
    // An abstract name: no file, and gone with the listener.
    let name = format!("\0aqueduct-{:032x}", fastrand::u128(..));
    let listener = UnixListener::bind(format!("{name}/.s.PGSQL.{port}"))?;
    tokio::spawn(async move {
        let Ok(mut client) = accept(listener).await else { return };
        // However it ends, both sockets close, and who waits at one of them hears it.
        let (client, server) = (&mut client, &mut server);
        let _ = copy_bidirectional_with_sizes(client, server, BUFFER_BYTES, BUFFER_BYTES).await;
    });
    options.clone().socket(name).connect().await
}

fn set_options(socket: &TcpStream) -> Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_COUNT)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// The one connection that comes from this process.
async fn accept(listener: UnixListener) -> Result<UnixStream> {
    loop {
        let (client, _) = listener.accept().await?;
        if client.peer_cred()?.pid() == i32::try_from(std::process::id()).ok() {
            return Ok(client);
        }
    }
}
