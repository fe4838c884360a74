//! What an error of Redis means to a user: one kind of message for each cause, with the address
//! and the remedy, and without a secret.

use anyhow::Error;
use redis::{ErrorKind, RedisError};

/// The server's code of an error (`NOGROUP`, `MOVED`), where it is the server's.
pub fn code(error: &Error) -> Option<&str> {
    error.downcast_ref::<RedisError>().and_then(RedisError::code)
}

/// Whether an error says that another node is to be asked.
pub(super) fn is_elsewhere(error: &Error) -> bool {
    match error.downcast_ref::<RedisError>() {
        Some(error) => {
            let elsewhere = ["MOVED", "ASK", "CLUSTERDOWN", "READONLY", "MASTERDOWN"];
            error.is_unrecoverable_error()
                || error.is_timeout()
                || error.is_io_error()
                || error.code().is_some_and(|code| elsewhere.contains(&code))
        }
        None => false,
    }
}

/// Says what `error` of the server at `address` means.
pub(super) fn explain(error: RedisError, address: &str) -> Error {
    let message = match error.kind() {
        ErrorKind::Io | ErrorKind::Parse => of_connection(&error),
        ErrorKind::AuthenticationFailed => REFUSED,
        _ => of_code(error.code().unwrap_or_default(), error.detail().unwrap_or_default()),
    };
    let message = message.replace("{}", address);
    Error::new(error).context(message)
}

const REFUSED: &str = "{} refuses the user or the password (correct them in `url`, as \
                       redis://USER:PASSWORD@HOST, or redis://:PASSWORD@HOST without a user)";

fn of_connection(error: &RedisError) -> &'static str {
    use std::io::ErrorKind as Io;
    let text = error.to_string();
    let kind = source_kind(error);
    if error.kind() == ErrorKind::Parse {
        "{} does not speak the protocol of Redis (correct host and port in `url`; a port with TLS \
         wants rediss://)"
    } else if text.contains("certificate") || text.contains("UnknownIssuer") {
        "the certificate of {} is not trusted (have it signed by an authority that this machine \
         knows, or name a file of such in the environment variable SSL_CERT_FILE)"
    } else if text.contains("InvalidContentType")
        || text.contains("InvalidMessage")
        || text.contains("corrupt message")
    {
        "{} does not speak TLS (use redis://, or its port with TLS)"
    } else if text.contains("lookup address") || text.contains("No address found") {
        "the host of {} is not known (correct it in `url`)"
    } else {
        match kind {
            Some(Io::ConnectionRefused) => {
                "nothing listens at {} (start the server, or correct host and port in `url`)"
            }
            Some(Io::TimedOut) | Some(Io::WouldBlock) => {
                "{} does not answer (it hangs, or the way there is cut)"
            }
            Some(Io::HostUnreachable | Io::NetworkUnreachable) => {
                "there is no way to {} (correct the host in `url`, or the network)"
            }
            _ => {
                "the connection to {} broke (the server ended, or its port wants TLS, with \
                 rediss:// in `url`)"
            }
        }
    }
}

fn source_kind(error: &RedisError) -> Option<std::io::ErrorKind> {
    let source = std::error::Error::source(error)?;
    Some(source.downcast_ref::<std::io::Error>()?.kind())
}

fn of_code(code: &str, detail: &str) -> &'static str {
    match code {
        "WRONGPASS" => REFUSED,
        "NOAUTH" => {
            "{} wants a password (give it in `url`, as redis://:PASSWORD@HOST, or \
             redis://USER:PASSWORD@HOST)"
        }
        "NOPERM" => {
            "{} forbids this user a command or a key (its ACL needs `+@read +@write +@scripting \
             +@stream` on the stream's keys, `~KEY*` and `~{KEY}*`)"
        }
        "WRONGTYPE" => {
            "a key at {} holds something that is no stream of ours (give the stream another `key`, \
             or remove what is there)"
        }
        "MOVED" | "ASK" | "CROSSSLOT" | "TRYAGAIN" => "{} has just given the key to another node",
        "CLUSTERDOWN" => "the Redis Cluster of {} is down (some of its slots have no node)",
        "OOM" => {
            "{} has no memory left (raise its `maxmemory`, or let groups catch up so that the \
             stream is trimmed)"
        }
        "READONLY" => "{} is a replica (give the `url` of the primary)",
        "LOADING" => "{} is still loading its data",
        "MASTERDOWN" => "{} is a replica that has lost its primary",
        "MISCONF" => "{} cannot write its data to disk (make room there, or see its log)",
        "BUSY" => "{} is busy with somebody's script",
        "NOREPLICAS" => "{} has not as many replicas as it is told to have before it writes",
        _ if detail.contains("unknown command") || detail.contains("max number of clients") => {
            "{} refuses a command or a client"
        }
        _ => "{} refuses a command",
    }
}
