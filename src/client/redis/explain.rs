//! What an error of Redis means to a user: one kind of message for each cause, with the address
//! and the remedy, and without a secret.

use std::fmt;

use anyhow::Error;
use redis::{ErrorKind, RedisError};

/// An error as Redis or the way there gave it. Its text holds its cause's already.
#[derive(Debug)]
struct Cause(RedisError);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Cause {}

/// The server's code of an error (`NOGROUP`, `MOVED`), where it is the server's.
pub fn code(error: &Error) -> Option<&str> {
    error.downcast_ref::<Cause>().and_then(|cause| cause.0.code())
}

/// Whether an error says that another node is to be asked.
pub(super) fn is_elsewhere(error: &Error) -> bool {
    let Some(Cause(error)) = error.downcast_ref() else { return false };
    let elsewhere = ["MOVED", "ASK", "CLUSTERDOWN", "READONLY", "MASTERDOWN"];
    error.is_unrecoverable_error()
        || error.is_timeout()
        || error.is_io_error()
        || error.code().is_some_and(|code| elsewhere.contains(&code))
}

/// Says what `error` of the server at `address` means.
pub(super) fn explain(error: RedisError, address: &str) -> Error {
    let message = match error.kind() {
        ErrorKind::Io | ErrorKind::Parse => of_connection(&error, address.starts_with("rediss:")),
        ErrorKind::AuthenticationFailed => REFUSED,
        _ => of_code(error.code().unwrap_or_default(), error.detail().unwrap_or_default()),
    };
    Error::new(Cause(error)).context(message.replace("{}", address))
}

const REFUSED: &str = "{} refuses the user or the password (correct them in `url`, as \
                       redis://USER:PASSWORD@HOST, or redis://:PASSWORD@HOST without a user)";

fn of_connection(error: &RedisError, tls: bool) -> &'static str {
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if error.is_timeout() && tls {
        "{} does not answer (it hangs, the way there is cut, or this port has no TLS: then use \
         redis://)"
    } else if error.is_timeout() {
        "{} does not answer (it hangs, or the way there is cut)"
    } else if error.kind() == ErrorKind::Parse {
        "{} does not speak the protocol of Redis (correct host and port in `url`; a port with TLS \
         wants rediss://)"
    } else if says(&["certificate", "UnknownIssuer"]) {
        "the certificate of {} is not trusted (have it signed by an authority that this machine \
         knows, or name a file of such in the environment variable SSL_CERT_FILE)"
    } else if says(&["InvalidContentType", "InvalidMessage", "corrupt message"]) {
        "{} does not speak TLS (use redis://, or its port with TLS)"
    } else if says(&["lookup address", "No address found"]) {
        "the host of {} is not known (correct it in `url`)"
    } else if error.is_connection_refusal() {
        "nothing listens at {} (start the server, or correct host and port in `url`)"
    } else if says(&["unreachable", "No route"]) {
        "there is no way to {} (correct the host in `url`, or the network)"
    } else {
        "the connection to {} broke (the server ended, or its port wants TLS, with rediss:// in \
         `url`)"
    }
}

fn of_code(code: &str, detail: &str) -> &'static str {
    match code {
        "WRONGPASS" => REFUSED,
        "NOAUTH" => {
            "{} wants a password (give it in `url`, as redis://:PASSWORD@HOST, or \
             redis://USER:PASSWORD@HOST)"
        }
        _ if code == "NOPERM" || detail.contains("user executing the script") => {
            "{} forbids this user a command or a key (its ACL needs `+@read +@write +@scripting` for \
             the keys `~KEY*` and `~{KEY}*`, and for a Redis Cluster `+cluster|slots`)"
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
