//! Reading rows back.

mod index;
mod statement;
mod view;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use self::index::Indexes;
use self::statement::Statement;
use self::view::View;
use super::Name;
use crate::client::postgres::{Server, Session, code, database_error};
use crate::sink::SinkSpec;
use crate::sink::query::pool::{Pool, Turn};
use crate::sink::query::{Ask, Filling, Mark, Page, Reader, Unanswered, machine};

/// For how long the table is taken to be what it was.
const VIEW_AGE_MAX: Duration = Duration::from_secs(5);
/// For how long a server that could not be reached is taken to be away.
const DOWN: Duration = Duration::from_millis(500);
/// A statement of ours is as short as this, or the server ends it.
const CHECK: Duration = Duration::from_secs(2);

/// The rows of a sink's table.
pub(super) fn open(spec: &SinkSpec) -> Result<Arc<dyn Reader>> {
    let server = Arc::new(Server::new(spec.values.str("url"), &format!("{}/query", spec.name))?);
    let name = Name::parse(spec.values.str("table"))?;
    let indexes = Indexes::new(server.clone(), spec.values.bool("create"));
    let (pool, view, down) = (Pool::new(), Mutex::default(), Mutex::default());
    Ok(Arc::new(Table { server, name, pool, view, down, indexes }))
}

struct Table {
    server: Arc<Server>,
    name: Name,
    pool: Pool<Live>,
    view: Mutex<Option<Arc<View>>>,
    /// When and why the last connection could not be made.
    down: Mutex<Option<(Instant, Arc<str>)>>,
    indexes: Indexes,
}

/// A connection that cannot write.
struct Live {
    session: Session,
    /// The time limit that was set on it last.
    timeout: Duration,
}

/// Why there is no page yet.
enum Failed {
    Unanswered(Unanswered),
    Sql(sqlx::Error),
}

impl From<Unanswered> for Failed {
    fn from(unanswered: Unanswered) -> Self {
        Self::Unanswered(unanswered)
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::Unanswered(Unanswered::Away(error))
    }
}

#[async_trait]
impl Reader for Table {
    fn identity(&self) -> String {
        let address = self.server.address();
        let here = ["localhost", "127.", "::1", "/"].iter().any(|it| address.starts_with(it));
        format!(
            "table {} in {address}/{} as {}{}",
            self.name.sql(),
            self.server.database(),
            self.server.options().get_username(),
            if here { format!(" on {}", machine()) } else { String::new() }
        )
    }

    async fn page(&self, ask: &Ask) -> Result<Page, Unanswered> {
        let turn = self.pool.turn().await;
        loop {
            let (live, used) = match turn.take() {
                Some(mut live) => match live.session.refresh(&self.server).await {
                    Ok(()) => (live, true),
                    Err(_) => {
                        turn.clear();
                        continue;
                    }
                },
                None => (self.connect().await?, false),
            };
            match self.try_page(live, &turn, ask).await {
                Ok(page) => return Ok(page),
                Err(Failed::Unanswered(unanswered)) => return Err(unanswered),
                // The server was restarted since: with a new connection it may go well.
                Err(Failed::Sql(error)) if used && is_lost(&error) => turn.clear(),
                Err(Failed::Sql(error)) if code(&error) == Some("57014") => {
                    return Err(Unanswered::Late);
                }
                Err(Failed::Sql(error)) => return Err(self.server.explain(&error).into()),
            }
        }
    }

    async fn check(&self, order: Option<&str>) -> Result<()> {
        // Where all are at work, the server works.
        let Some(turn) = self.pool.try_turn() else { return Ok(()) };
        let mut live = match turn.take() {
            Some(mut live) => match live.session.ping(&self.server).await {
                Ok(()) => live,
                Err(_) => {
                    turn.clear();
                    self.connect().await?
                }
            },
            None => self.connect().await?,
        };
        let tried = self.plan(&mut live, order).await;
        tried.map_err(|failed| self.error(failed))?;
        turn.give(live);
        Ok(())
    }
}

impl Table {
    /// A new connection. Where one could not be made a moment ago, nobody waits for the next.
    async fn connect(&self) -> Result<Live> {
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, error)) = down.filter(|(since, _)| since.elapsed() < DOWN) {
            anyhow::bail!("{error}");
        }
        let connected = self.server.connect().await;
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) =
            connected.as_ref().err().map(|error| (Instant::now(), format!("{error:#}").into()));
        let mut session = connected?;
        let limit = format!(
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; SET statement_timeout = {}",
            CHECK.as_millis()
        );
        let limited = sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *session).await;
        limited.map_err(|error| self.server.explain(&error))?;
        Ok(Live { session, timeout: CHECK })
    }

    async fn try_page(
        &self,
        mut live: Live,
        turn: &Turn<'_, Live>,
        ask: &Ask,
    ) -> Result<Page, Failed> {
        if live.timeout != ask.timeout {
            let limit = ask.timeout.as_millis().clamp(1, i32::MAX as u128);
            let set = AssertSqlSafe(format!("SET statement_timeout = {limit}"));
            sqlx::raw_sql(set).execute(&mut *live.session).await?;
            live.timeout = ask.timeout;
        }
        for again in [false, true] {
            let view = self.view(&mut live).await?;
            self.indexes.see_to(&view, ask.order.as_deref());
            let statement = match view.statement(ask) {
                Ok(statement) => statement,
                Err(unanswered) => {
                    turn.give(live);
                    return Err(unanswered.into());
                }
            };
            let error = match read(&mut live.session, &statement, ask.limit).await {
                Ok((page, whole)) => {
                    if whole {
                        turn.give(live);
                    }
                    return Ok(page);
                }
                Err(error) => error,
            };
            match code(&error).unwrap_or_default() {
                // The table is another one by now.
                "42P01" | "42703" | "42704" if !again => self.forget(),
                // A value that is none of its type, a type without equality, nested too deep.
                other if other.starts_with("22") || matches!(other, "42883" | "54001") => {
                    let blamed = view.blame(&mut live.session, ask).await?;
                    turn.give(live);
                    let away = || Unanswered::Away(self.server.explain(&error));
                    return Err(blamed.map_or_else(away, Unanswered::Wrong).into());
                }
                _ => return Err(error.into()),
            }
        }
        Err(anyhow::anyhow!("the table changes while it is read").into())
    }

    /// Has the server plan a page: does it let us read it, and in this order?
    async fn plan(&self, live: &mut Live, order: Option<&str>) -> Result<(), Failed> {
        let view = self.view(live).await?;
        self.indexes.see_to(&view, order);
        let ask = Ask {
            filters: Vec::new(),
            order: order.map(str::to_owned),
            limit: 1,
            after: None,
            timeout: CHECK,
        };
        let explain = format!("EXPLAIN {}", view.statement(&ask)?.sql);
        sqlx::raw_sql(AssertSqlSafe(explain)).execute(&mut *live.session).await?;
        Ok(())
    }

    /// What the table looks like, at most some seconds ago.
    async fn view(&self, live: &mut Live) -> Result<Arc<View>, Failed> {
        let known = self.view.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| known.read_at.elapsed() < VIEW_AGE_MAX) {
            return Ok(known);
        }
        let view = match View::read(&mut live.session, &self.name, Instant::now()).await? {
            Some(view) => Arc::new(view),
            None => {
                return Err(anyhow::anyhow!(
                    "there is no table `{}` in {}/{} (its sink creates it when it runs, or name \
                     its schema)",
                    self.name.table,
                    self.server.address(),
                    self.server.database()
                )
                .into());
            }
        };
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Some(view.clone());
        Ok(view)
    }

    /// For the log, or `/healthz`.
    fn error(&self, failed: Failed) -> anyhow::Error {
        match failed {
            Failed::Unanswered(Unanswered::Away(error)) => error,
            Failed::Unanswered(Unanswered::Wrong(message)) => anyhow::anyhow!(message),
            Failed::Unanswered(Unanswered::Late) => anyhow::anyhow!("it takes too long"),
            Failed::Sql(error) => self.server.explain(&error),
        }
    }

    fn forget(&self) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whether an error means that the connection is of no use any more.
fn is_lost(error: &sqlx::Error) -> bool {
    match database_error(error) {
        Some(error) => matches!(error.code(), "57P01" | "57P02" | "57P03" | "57P05"),
        None => !matches!(error, sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)),
    }
}

/// The page, and whether all of the answer was read.
async fn read(
    session: &mut Session,
    statement: &Statement,
    limit: usize,
) -> sqlx::Result<(Page, bool)> {
    let mut query = sqlx::query(AssertSqlSafe(statement.sql.clone())).persistent(false);
    for value in &statement.bound {
        query = query.bind(value);
    }
    let mut found = query.fetch(&mut **session);
    let (mut page, mut last, mut next) = (Filling::new(limit), None, None);
    let mut whole = true;
    while let Some(row) = found.try_next().await? {
        let taken = page.take(row.try_get(0)?);
        if !taken.map_err(|error| sqlx::Error::Decode(error.into()))? {
            next = last.map(|last| mark(&last)).transpose()?;
            whole = found.try_next().await?.is_none();
            break;
        }
        last = Some(row);
    }
    Ok((page.page(next), whole))
}

/// A row's place.
fn mark(row: &PgRow) -> sqlx::Result<Mark> {
    let values = (1..row.len()).map(|at| Ok(row.try_get::<Option<String>, _>(at)?.into()));
    values.collect::<sqlx::Result<_>>().map(Mark)
}
