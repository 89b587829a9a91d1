//! `portcullis witness`: a witness of transparency logs (C2SP tlog-witness v1).
//!
//! It shares a program with the gateway and nothing else: it has its own configuration, key, folder and port. For each log
//! that it was told of it remembers one checkpoint, and cosigns the next when that goes on from it. What it remembers is on
//! disk before a cosignature leaves; whoever sets its folder back makes it sign two histories, so the folder is not restored
//! from a copy.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /add-checkpoint` | 200 with cosignatures, or why not: [`book::Refused`] |
//! | `GET /HASH/checkpoint` | the checkpoint last cosigned, HASH being the SHA-256 of the origin in hex |
//! | `GET /` | the verifier keys, for people: whoever trusts them has them from elsewhere |

pub mod book;
pub mod config;
mod key;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::{HeaderValue, Method, Response, StatusCode, header};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};

use self::book::{Book, Refused};
use self::config::Config;
use crate::accept::{Bound, Drained, Handler, Peer};
use crate::cli::No;
use crate::clock::Moment;
use crate::mistake::Mistake;
use crate::prove::key::Exposed;
use crate::say::{Unsaid, aside, say};
use crate::tlog::add_checkpoint::{AddCheckpoint, MAX_REQUEST, NotARequest, SIZE_TYPE};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::cosignature::Cosigner;
use crate::wire::{Body, read};

/// The examples of the command's help.
pub const EXAMPLE: &str =
    "Examples:\n  portcullis witness key --name witness.example/w1 --out witness.pem\n  portcullis witness --config witness.toml";
/// Requests that are judged at once; others wait. Each may hold a thread while its checkpoint is synced.
pub const MAX_JUDGED: usize = 16;
const LOCK: &str = "lock";

/// `portcullis witness`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The witness's configuration.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Once ready, one line of JSON: {"url","name","keys"}.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a witness's key, or show the verifier keys of one that there is.
    #[command(
        after_help = "Examples:\n  portcullis witness key --name witness.example/w1 --out witness.pem\n  portcullis witness key --name witness.example/w1 --key witness.pem"
    )]
    Key(key::Arguments),
}

/// Does it.
///
/// # Errors
/// Anything that keeps the witness from starting as it is configured, and a disk that failed while it ran.
pub fn run(arguments: Arguments) -> Result<(), No> {
    let config = match arguments {
        Arguments { verb: Some(Verb::Key(arguments)), .. } => return key::run(&arguments),
        Arguments { config, .. } => config.ok_or_else(|| No::because("name the configuration: --config FILE"))?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(No::because)?;
    runtime.block_on(serve(&config, arguments.json))
}

async fn serve(file: &Path, json: bool) -> Result<(), No> {
    let text = std::fs::read_to_string(file).map_err(|error| No::because(format!("{}: {error}", file.display())))?;
    let told = |mistakes: Vec<Mistake>| No(mistakes.iter().map(|mistake| mistake.located(file, &text)).collect());
    let config = Config::parse(&text).map_err(told)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let (cosigner, Exposed(exposed)) = config.cosigner(folder).map_err(told)?;
    if exposed {
        aside!("portcullis: warning: others than its owner may read {}", folder.join(&config.key).display());
    }
    let keys = cosigner.vkeys().map(|key| key.to_string());
    let accept = config.accept(folder).map_err(told)?;
    let tls = accept.tls().is_some();
    let witness = Witness::open(&config, folder, cosigner)?;
    let bound = accept.bind().map_err(|error| No::because(format!("{}: {error}", config.listen.get_ref())))?;
    announce(&keys, &config, bound.address(), tls, json)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(No::because)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(No::because)?;
    let failed = witness.failed.clone();
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = failed.notified() => {}
        }
    };
    let _ = witness.serve(bound, stop).await;
    match witness.failure() {
        Some(error) => Err(No::because(format!("{}: {error}; what is on disk is uncertain", folder.join(&config.directory).display()))),
        None => Ok(()),
    }
}

fn announce(keys: &[String], config: &Config, address: SocketAddr, tls: bool, json: bool) -> Result<(), Unsaid> {
    let (url, name) = (format!("{}://{address}", if tls { "https" } else { "http" }), config.name.get_ref());
    if json {
        say!("{}", serde_json::json!({ "url": url, "name": name, "keys": keys }))
    } else {
        say!("{name} is ready on {url}")?;
        keys.iter().try_for_each(|key| say!("{key}"))
    }
}

/// A witness: its keys, and a book for each log.
#[derive(Clone)]
pub struct Witness {
    cosigner: Arc<Cosigner>,
    /// By origin.
    books: Arc<HashMap<String, Arc<Shelf>>>,
    /// Origins by the hash that monitors ask for.
    hashes: Arc<HashMap<String, String>>,
    judging: Arc<Semaphore>,
    /// Told once, when the disk failed.
    failed: Arc<Notify>,
    failure: Arc<Mutex<Option<Arc<io::Error>>>>,
    /// Two processes on one folder would not know what the other signs.
    _lock: Arc<File>,
}

struct Shelf {
    book: Mutex<Book>,
    /// What monitors are shown: they do not wait for a disk.
    shown: ArcSwapOption<Bytes>,
}

fn shown_of(book: &Book) -> Option<Arc<Bytes>> {
    book.latest().map(|note| Arc::new(Bytes::from(note.to_string())))
}

impl Witness {
    /// Opens the folder and reads what is remembered of each log.
    ///
    /// # Errors
    /// When another process has it open, or what it holds is not what this witness wrote.
    pub fn open(config: &Config, base: &Path, cosigner: Cosigner) -> Result<Self, No> {
        let directory = base.join(&config.directory);
        let told = |error: io::Error| No::because(format!("{}: {error}", directory.display()));
        std::fs::create_dir_all(&directory).map_err(told)?;
        let lock = File::options().write(true).create(true).truncate(false).open(directory.join(LOCK)).map_err(told)?;
        lock.try_lock().map_err(|_| No::because(format!("{}: another witness is at work here", directory.display())))?;
        let (mut books, mut hashes) = (HashMap::new(), HashMap::new());
        for log in &config.log {
            let origin = log.origin.get_ref();
            let book = Book::open(&directory, origin, log.vkeys(), &cosigner).map_err(No::because)?;
            hashes.insert(Checkpoint::origin_hash(origin), origin.clone());
            let shown = ArcSwapOption::new(shown_of(&book));
            books.insert(origin.clone(), Arc::new(Shelf { book: Mutex::new(book), shown }));
        }
        Ok(Self {
            cosigner: Arc::new(cosigner),
            books: Arc::new(books),
            hashes: Arc::new(hashes),
            judging: Arc::new(Semaphore::new(MAX_JUDGED)),
            failed: Arc::default(),
            failure: Arc::default(),
            _lock: Arc::new(lock),
        })
    }

    /// Serves until `stop` ends.
    pub async fn serve(&self, bound: Bound, stop: impl Future<Output = ()>) -> Drained {
        bound.serve(self.clone(), stop).await
    }

    /// The failure of the disk after which this witness signs nothing more.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<io::Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn add_checkpoint(&self, peer: &mut Peer) -> Result<String, Refused> {
        let body = read::whole(&mut peer.take_body(), MAX_REQUEST, peer.deadline()).await;
        let body = body.map_err(|why| match why {
            read::Error::TheySentTooMuch => Refused::CallerSentNoRequest(NotARequest::TooLong),
            _ => Refused::CallerBrokeBody,
        })?;
        let request = AddCheckpoint::parse(&body).map_err(Refused::CallerSentNoRequest)?;
        let shelf = self.books.get(&request.checkpoint().origin).ok_or(Refused::OriginUnknown)?.clone();
        let turn = self.judging.clone().acquire_owned().await.map_err(|_| Refused::WitnessFailed)?;
        let this = self.clone();
        // On a thread of its own, where it ends even when whoever asked has gone.
        let judged = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            // A book that was being written when its thread died may say anything.
            let mut book = shelf.book.lock().map_err(|_| Refused::WitnessFailed)?;
            if this.failure().is_some() {
                return Err(Refused::WitnessFailed);
            }
            let lines = book.add(&request, &this.cosigner, Moment::now().unix_seconds()).inspect_err(|why| {
                if let Refused::DiskUncertain(error) = why {
                    *this.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                    this.failed.notify_one();
                }
            })?;
            shelf.shown.store(shown_of(&book));
            Ok(lines)
        });
        judged.await.unwrap_or(Err(Refused::WitnessFailed))
    }

    fn checkpoint(&self, path: &str) -> Option<Bytes> {
        let hash = path.strip_prefix('/')?.strip_suffix("/checkpoint")?;
        self.books.get(self.hashes.get(hash)?)?.shown.load().as_deref().cloned()
    }
}

impl Handler for Witness {
    async fn handle(&self, mut peer: Peer) -> Response<Body> {
        let path = peer.uri().path().to_owned();
        if path == "/add-checkpoint" {
            if peer.method() != Method::POST {
                return answer(StatusCode::METHOD_NOT_ALLOWED, "POST alone\n");
            }
            return match self.add_checkpoint(&mut peer).await {
                Ok(lines) => answer(StatusCode::OK, lines),
                Err(why) => refusal(&why),
            };
        }
        if peer.method() != Method::GET && peer.method() != Method::HEAD {
            return answer(StatusCode::METHOD_NOT_ALLOWED, "GET alone\n");
        }
        if path == "/" {
            return answer(StatusCode::OK, self.cosigner.vkeys().map(|key| format!("{key}\n")).concat());
        }
        match self.checkpoint(&path) {
            Some(checkpoint) => answer(StatusCode::OK, checkpoint),
            None => answer(StatusCode::NOT_FOUND, "no checkpoint here\n"),
        }
    }
}

fn refusal(why: &Refused) -> Response<Body> {
    match why {
        Refused::OldSizeDiffers(known) => {
            let mut response = answer(why.status(), format!("{known}\n"));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(SIZE_TYPE));
            response
        }
        _ => answer(why.status(), format!("{why}\n")),
    }
}

fn answer(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
