//! PostgreSQL as the plug-ins use it: connections that are made soon or not at all, a server that
//! hangs is noticed, and errors name the server and the way out.

mod socket;

use std::future::Future;
use std::io::ErrorKind;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError};
use sqlx::{ConnectOptions, Connection};

/// How long a connection may take until it can be used.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take before the server is asked whether it is still there; and how long
/// from one such question to the next.
const SILENCE: Duration = Duration::from_secs(5);
/// A connection that was not used for this long is tried before it is trusted: what lies between
/// it and the server may have forgotten it.
const IDLE: Duration = Duration::from_secs(30);

/// Who the server takes us for; and it is to notice when we are gone, so that no lock is kept.
const INTRODUCTION: &str = "
    SELECT pg_backend_pid() FROM (
        SELECT count(set_config(name, wanted, false)) FROM pg_settings JOIN (VALUES
            ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'),
            ('tcp_keepalives_count', '3'), ('tcp_user_timeout', '25000'),
            ('client_min_messages', 'warning')
        ) ours (name, wanted) USING (name)) done";

/// A server, and who we are there.
#[derive(Clone, Debug)]
pub struct Server {
    options: PgConnectOptions,
    shown: String,
}

impl Server {
    /// The server at `url` (`postgres://USER:PASSWORD@HOST:PORT/DATABASE`, parameters as libpq's),
    /// for the component `name`, by which the server's administrator will know us. Errs when the
    /// URL does not read; the error shows no password.
    pub fn new(url: &str, name: &str) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| anyhow!("`url` does not read: {}", says(&error)))?;
        let host = options.get_host().trim_matches(['[', ']']).to_owned();
        let mut options = options.host(&host).disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name(&format!("aqueduct/{name}"));
        }
        let shown = format!(
            "PostgreSQL at {}, database `{}`, user `{}`",
            address(&options),
            database(&options),
            options.get_username()
        );
        Ok(Self { options, shown })
    }

    /// What it is connected with.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// `HOST:PORT`, or the path of the socket's directory.
    pub fn address(&self) -> String {
        address(&self.options)
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        database(&self.options)
    }

    /// A connection, within 2 s. Errs with the reason and the way out.
    pub async fn connect(&self) -> Result<Session> {
        self.try_connect().await.map_err(|error| self.explain(&error))
    }

    async fn try_connect(&self) -> sqlx::Result<Session> {
        let connect = async {
            let mut connection = socket::connect(&self.options).await?;
            let asked = sqlx::query_scalar(INTRODUCTION).persistent(false);
            let pid = asked.fetch_one(&mut connection).await?;
            Ok(Session { connection, pid, used: Instant::now() })
        };
        within(CONNECT, connect).await
    }

    /// Waits for `work` on the connection of `pid`: as long as it takes, but only while the server
    /// is there and the connection's process is alive. Errs when it is not.
    pub async fn watch<T>(&self, pid: i32, work: impl Future<Output = T>) -> Result<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(SILENCE) => {}
            }
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                there = self.is_there(pid) => there.map_err(|error| self.explain(&error))?,
            }
        }
    }

    /// Errs when the server does not answer, or knows nothing of the process `pid`.
    async fn is_there(&self, pid: i32) -> sqlx::Result<()> {
        let mut other = match self.try_connect().await {
            Ok(other) => other,
            // It has no room for one more, but it is there.
            Err(error) if code(&error) == Some("53300") => return Ok(()),
            Err(error) => return Err(error),
        };
        let ask = sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE pid = $1")
            .persistent(false)
            .bind(pid)
            .fetch_one(&mut *other);
        let alive: i64 = within(CONNECT, ask).await?;
        let _ = within(CONNECT, other.connection.close()).await;
        match alive {
            0 => Err(std::io::Error::from(ErrorKind::ConnectionReset).into()),
            _ => Ok(()),
        }
    }

    /// What went wrong, where, and what would mend it.
    pub fn explain(&self, error: &sqlx::Error) -> anyhow::Error {
        anyhow!("{}: {}{}", self.shown, says(error), remedy(error))
    }
}

fn address(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(directory) => format!("{}:{}", directory.display(), options.get_port()),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

fn database(options: &PgConnectOptions) -> &str {
    options.get_database().unwrap_or(options.get_username())
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(std::io::Error::from(ErrorKind::TimedOut).into()),
    }
}

/// A connection. Dropped, it is closed, and the server undoes what was not committed.
#[derive(Debug)]
pub struct Session {
    connection: PgConnection,
    pid: i32,
    used: Instant,
}

impl Session {
    /// The server's process behind it, for [`Server::watch`].
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// To be called before it is used after a while. Errs when the server is not at its end.
    pub async fn refresh(&mut self, server: &Server) -> Result<()> {
        if self.used.elapsed() > IDLE {
            self.ping(server).await?;
        }
        self.used = Instant::now();
        Ok(())
    }

    /// Errs when the server is not at its end.
    pub async fn ping(&mut self, server: &Server) -> Result<()> {
        let ping = within(CONNECT, self.connection.ping()).await;
        ping.map_err(|error| server.explain(&error))?;
        self.used = Instant::now();
        Ok(())
    }
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// The SQLSTATE of an error, if the server gave one.
pub fn code(error: &sqlx::Error) -> Option<&str> {
    database_error(error).map(PgDatabaseError::code)
}

/// What the server said, if it said something.
pub fn database_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// Whether an error is the surroundings' fault: a lost connection, a server that shuts down or has
/// no room, a deadlock, a lock, a statement that was cancelled. Otherwise it is about what the
/// statement says or what it holds.
pub fn is_trouble(error: &sqlx::Error) -> bool {
    let Some(error) = database_error(error) else { return true };
    let code = error.code();
    match code.get(..2).unwrap_or_default() {
        // Connections, transaction states, serialization and deadlocks, resources, operators,
        // the system, a foreign server; who we are; the server's insides.
        "08" | "25" | "26" | "28" | "34" | "3B" | "3D" | "40" | "53" | "57" | "58" | "72"
        | "F0" | "HV" => true,
        "55" => matches!(code, "55006" | "55P03" | "55P04"),
        // A value too large for the server's insides fails while its line is read.
        "XX" => code != "XX000" || !error.r#where().is_some_and(|at| at.contains("COPY ")),
        // Row-level security speaks of a row, everything else with this code of privileges.
        "42" => code == "42501" && error.routine() != Some("ExecWithCheckOptions"),
        _ => false,
    }
}

/// Whether the same may go well at once, on the same connection: a deadlock, or a conflict of
/// transactions.
pub fn is_conflict(error: &sqlx::Error) -> bool {
    matches!(code(error), Some("40P01" | "40001"))
}

/// What an error says, on one line, with the server's detail.
pub fn says(error: &sqlx::Error) -> String {
    let text = match (error, database_error(error)) {
        (_, Some(error)) => match error.detail() {
            // The whole row, for which the event stands.
            Some(_) if matches!(error.code(), "23502" | "23514") => error.message().to_owned(),
            Some(detail) => format!("{} ({})", error.message(), detail.trim_end_matches('.')),
            None => error.message().to_owned(),
        },
        (sqlx::Error::Io(error), _) => match error.kind() {
            ErrorKind::TimedOut => "no answer within 2 s".into(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "the connection was lost".into()
            }
            _ => error.to_string(),
        },
        (sqlx::Error::Tls(error) | sqlx::Error::Configuration(error), _) => error.to_string(),
        _ => error.to_string(),
    };
    crate::spec::text::one_line(&crate::spec::text::redact(&text))
}

/// What would mend it, in parentheses, where that is known.
fn remedy(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::Io(error)
            if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) =>
        {
            " (name the authority that signed its certificate in `url`, with `sslrootcert=…`, or \
             do not verify it, with `sslmode=require`)"
        }
        sqlx::Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused => " (nobody listens there: start it, or change `url`)",
            ErrorKind::NotFound => " (there is no such socket: start it, or change `url`)",
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                " (is it up, and does no firewall keep it away?)"
            }
            _ if error.to_string().contains("lookup") => " (no such host: change `url`)",
            _ => "",
        },
        sqlx::Error::Tls(_) => " (set TLS up at the server, or change `sslmode` in `url`)",
        _ => code(error).map(remedy_of_code).unwrap_or_default(),
    }
}

fn remedy_of_code(code: &str) -> &'static str {
    match code {
        "28P01" => " (change the password or the user in `url`)",
        "28000" => " (create the role, or let the server's pg_hba.conf admit it from here)",
        "3D000" => " (create the database, or change `url`)",
        "3F000" => " (create the schema, or name another)",
        "42501" => " (GRANT it to the user, or name another user in `url`)",
        "25006" => " (it is read-only or a standby: name the primary in `url`)",
        "53300" => " (raise its `max_connections`, or lower `connections`)",
        "53100" => " (make room on its disk)",
        "53200" => " (give it more memory)",
        "57P03" => " (it is starting or stopping: it will be tried again)",
        "57014" => " (a time limit such as `statement_timeout`, or its administrator, ended it)",
        _ => "",
    }
}

/// An identifier of SQL, whatever it holds.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string of SQL, whatever it holds.
pub fn quote_text(text: &str) -> String {
    match text.contains('\\') {
        true => format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''")),
        false => format!("'{}'", text.replace('\'', "''")),
    }
}

/// Errs when a name is longer than PostgreSQL keeps: it would cut it, and mean another.
pub fn check_name(name: &str) -> Result<()> {
    const NAME_BYTES_MAX: usize = 63;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        bail!("`{name}` is no name for PostgreSQL (1 to {NAME_BYTES_MAX} bytes)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_without_its_password() {
        let server = Server::new("postgres://me:hunter2@[::1]:5433/db?sslmode=disable", "out");
        let server = server.unwrap();
        let error = server.explain(&std::io::Error::from(ErrorKind::ConnectionRefused).into());
        assert_eq!(
            error.to_string(),
            "PostgreSQL at ::1:5433, database `db`, user `me`: connection refused (nobody listens \
             there: start it, or change `url`)"
        );
        assert_eq!(server.options().get_application_name(), Some("aqueduct/out"));
        let error = Server::new("postgres://me:hunter2@host:port/db", "out").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn names_and_texts_stay_what_they_are() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_text("it's"), "'it''s'");
        assert_eq!(quote_text("it's\\"), " E'it''s\\\\'");
        assert!(check_name(&"x".repeat(64)).is_err());
    }
}
