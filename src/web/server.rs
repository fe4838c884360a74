//! The listeners: opened and closed as the topology, and each edit of it, asks for.

use std::net::TcpListener;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix::Addr;
use actix_web::dev::ServerHandle;
use actix_web::web;
use anyhow::{Context, Result};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::inside::Inside;
use super::serving::Serving;
use super::{Reloads, Served, Side, serve, tls};
use crate::actor::supervisor::{Part, Supervisor};
use crate::telemetry::board::Board;
use crate::topology::edition::Edition;
use crate::topology::{Faults, Http, Topology};

/// How long an address may take to be free again after its listener closed.
const FREE_WAIT: Duration = Duration::from_secs(2);
/// How often it is tried.
const FREE_RETRY: Duration = Duration::from_millis(50);

/// What listens; stop it before the process ends.
pub struct Server {
    part: Part,
    board: Arc<Board>,
    editions: watch::Receiver<Arc<Edition>>,
    supervisor: Addr<Supervisor>,
    reloads: Reloads,
    /// From the first `[http]` on.
    served: Option<web::Data<Served>>,
    inside: Option<web::Data<Inside>>,
    shown: Option<Arc<tls::Shown>>,
    open: Vec<Open>,
}

/// Something that is to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    address: String,
    tls: bool,
    side: Side,
}

/// Something that listens.
struct Open {
    place: Place,
    handle: ServerHandle,
}

/// What an edit asks for, as far as it could be made before the edit is applied.
pub struct Prepared {
    serving: Option<Serving>,
    certificate: Option<CertifiedKey>,
    places: Vec<Place>,
    bound: Vec<(Place, TcpListener)>,
}

impl Server {
    /// Listens on nothing yet.
    pub fn new(
        editions: watch::Receiver<Arc<Edition>>,
        part: Part,
        supervisor: Addr<Supervisor>,
        board: Arc<Board>,
        reloads: Reloads,
    ) -> Self {
        let (served, inside, shown, open) = (None, None, None, Vec::new());
        Self { part, board, editions, supervisor, reloads, served, inside, shown, open }
    }

    /// Opens what `topology` asks for and is not open yet, so that an edit that cannot be served
    /// is refused before it is applied. Errs with what is wrong with `[http]`, and where.
    pub fn prepare(&self, topology: &Topology) -> Result<Prepared, Faults> {
        let Some(http) = &topology.http else {
            let (serving, certificate) = (None, None);
            return Ok(Prepared { serving, certificate, places: Vec::new(), bound: Vec::new() });
        };
        let wrong = |key: &str, error: anyhow::Error| {
            topology.fault_at(&["http", key], format!("{error:#}"))
        };
        let before = self.served.as_ref().map(|served| served.now());
        let serving = Serving::new(http, topology, &self.part, &self.board, before.as_deref());
        let serving = serving.map_err(|error| wrong("", error))?;
        let certificate = http.tls.as_ref().map(tls::certificate).transpose();
        let certificate = certificate.map_err(|error| wrong("tls", error))?;
        let places = places(http);
        let mut bound = Vec::new();
        for place in &places {
            // What listens there with other settings has to go first.
            let taken = self.open.iter().any(|open| open.place.address == place.address);
            if !taken {
                let key = if place.side.intake { "listen" } else { "admin" };
                let listener = bind(&place.address).map_err(|error| wrong(key, error))?;
                bound.push((place.clone(), listener));
            }
        }
        Ok(Prepared { serving: Some(serving), certificate, places, bound })
    }

    /// Serves what was prepared, and closes what is not wanted any more. Errs when an address
    /// that changed its settings could not be opened again.
    pub async fn apply(&mut self, prepared: Prepared) -> Result<()> {
        let Prepared { serving, certificate, places, mut bound } = prepared;
        if let Some(certificate) = certificate {
            match &self.shown {
                Some(shown) => shown.replace(certificate),
                None => self.shown = Some(tls::Shown::new(certificate)),
            }
        }
        if let Some(serving) = serving {
            self.show(serving);
        }
        let (stay, go): (Vec<_>, Vec<_>) =
            self.open.drain(..).partition(|open| places.contains(&open.place));
        self.open = stay;
        for open in go {
            // What is under way there ends by itself; the address is free at once.
            let again = places.iter().any(|place| place.address == open.place.address);
            let stopping = open.handle.stop(true);
            if again {
                stopping.await;
            } else {
                actix_rt::spawn(stopping);
            }
        }
        for place in places {
            if self.open.iter().any(|open| open.place == place) {
                continue;
            }
            let listener = match bound.iter().position(|(of, _)| *of == place) {
                Some(found) => bound.swap_remove(found).1,
                None => bind_again(&place.address).await?,
            };
            self.listen(place, listener)?;
        }
        Ok(())
    }

    fn show(&mut self, serving: Serving) {
        let serving = Arc::new(serving);
        match &self.served {
            Some(served) => {
                *served.serving.write().unwrap_or_else(PoisonError::into_inner) = serving;
            }
            None => {
                let served = web::Data::new(Served {
                    editions: self.editions.clone(),
                    supervisor: self.supervisor.clone(),
                    board: self.board.clone(),
                    serving: RwLock::new(serving),
                    reloads: self.reloads.clone(),
                });
                self.inside = Some(web::Data::new(Inside::start(&served)));
                self.served = Some(served);
            }
        }
    }

    fn listen(&mut self, place: Place, listener: TcpListener) -> Result<()> {
        let (Some(served), Some(inside)) = (&self.served, &self.inside) else {
            return Ok(()); // there is no place without
        };
        let tls = self.shown.as_ref().filter(|_| place.tls).map(|shown| shown.config());
        let handle = serve(listener, tls.transpose()?, place.side, served, inside)?;
        self.open.push(Open { place, handle });
        Ok(())
    }

    /// Stops listening, and gives open connections a moment.
    pub async fn stop(self) {
        if let Some(inside) = &self.inside {
            inside.stop();
        }
        for open in self.open {
            open.handle.stop(true).await;
        }
    }
}

/// Where `http` has something listen.
fn places(http: &Http) -> Vec<Place> {
    let tls = http.tls.is_some();
    let place = |address: &String, side| Place { address: address.clone(), tls, side };
    let own = Side { inside: http.admin.is_none(), intake: true };
    let admin = http.admin.as_ref();
    let admin = admin.map(|address| place(address, Side { inside: true, intake: false }));
    [place(&http.listen, own)].into_iter().chain(admin).collect()
}

fn bind(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} (is another program there?)"))
}

async fn bind_again(address: &str) -> Result<TcpListener> {
    let until = tokio::time::Instant::now() + FREE_WAIT;
    loop {
        match bind(address) {
            Err(_) if tokio::time::Instant::now() < until => tokio::time::sleep(FREE_RETRY).await,
            bound => return bound,
        }
    }
}
