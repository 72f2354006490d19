//! The way between robots and learner: a zenoh session.
//!
//! Robots ask and the learner answers (zenoh queries), so that every message has an answer or none, and a robot sets its
//! own pace. Without a configuration file of zenoh nothing is discovered, robots listen nowhere, and the learner
//! listens where `fleet.listen` says.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::json;
use zenoh::handlers::{FifoChannel, FifoChannelHandler};
use zenoh::pubsub::Subscriber;
use zenoh::qos::{CongestionControl, Priority};
use zenoh::query::{Query, Queryable};
use zenoh::{Session, Wait};

use super::error::FleetError;
use super::wire::MAX_MESSAGE;
use crate::config::FleetConfig;

/// Messages that wait for whoever answers them; further ones wait with their senders.
const WAITING: usize = 1024;

/// Which end of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Connects, again and again if need be.
    Robot,
    /// Listens.
    Learner,
}

/// An open session of one fleet.
pub struct Link {
    session: Session,
    fleet: String,
    place: String,
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> FleetError {
    move |error| FleetError::Link { what, reason: error.to_string() }
}

/// zenoh's configuration: the file's, or one that reaches and listens nowhere but where `[fleet]` says.
fn configuration(fleet: &FleetConfig, side: Side) -> Result<zenoh::Config, FleetError> {
    if !fleet.zenoh.as_os_str().is_empty() {
        return zenoh::Config::from_file(&fleet.zenoh).map_err(failed("fleet.zenoh cannot be used"));
    }
    let (mode, connect, listen) = match side {
        Side::Robot => ("peer", vec![&fleet.connect], vec![]),
        Side::Learner => ("router", vec![], vec![&fleet.listen]),
    };
    let text = json!({
        "mode": mode,
        "connect": { "endpoints": connect },
        "listen": { "endpoints": listen },
        "scouting": { "multicast": { "enabled": false }, "gossip": { "enabled": false } },
        "transport": { "link": { "rx": { "max_message_size": MAX_MESSAGE + 4096 } } },
    });
    zenoh::Config::from_json5(&text.to_string()).map_err(failed("[fleet] cannot be used"))
}

impl Link {
    /// Opens the session. A robot's is open before the learner is there.
    ///
    /// # Errors
    /// When the configuration cannot be used, or the learner cannot listen there.
    pub fn open(fleet: &FleetConfig, side: Side) -> Result<Self, FleetError> {
        let session = zenoh::open(configuration(fleet, side)?).wait().map_err(failed("cannot open"))?;
        let place = match (side, fleet.zenoh.as_os_str().is_empty()) {
            (_, false) => fleet.zenoh.display().to_string(),
            (Side::Robot, true) => fleet.connect.clone(),
            (Side::Learner, true) => fleet.listen.clone(),
        };
        Ok(Self { session, fleet: fleet.name.clone(), place })
    }

    /// Where the learner is, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    fn key(&self, name: &str) -> String {
        format!("fieldtune/{}/{name}", self.fleet)
    }

    /// Asks the learner and waits at most `patience` for its answer.
    ///
    /// # Errors
    /// When there is none, or it refuses.
    pub fn ask(&self, name: &str, message: Vec<u8>, patience: Duration) -> Result<Vec<u8>, FleetError> {
        let key = self.key(name);
        let asked = self.session.get(&key).payload(message).timeout(patience);
        let replies = asked.wait().map_err(failed("cannot ask"))?;
        let Ok(Some(reply)) = replies.recv_timeout(patience) else { return Err(FleetError::Silent { key }) };
        match reply.into_result() {
            Ok(sample) => Ok(sample.payload().to_bytes().into_owned()),
            // zenoh's own error in the place of an answer that did not come in time.
            Err(error) => match text(&error.payload().to_bytes()) {
                reason if reason == "Timeout" => Err(FleetError::Silent { key }),
                reason => Err(FleetError::Refused(reason)),
            },
        }
    }

    /// Says something to whoever listens, if it gets through; never waits for a slow link.
    pub fn tell(&self, name: &str, message: Vec<u8>) {
        let put = self.session.put(self.key(name), message);
        if let Err(error) = put.congestion_control(CongestionControl::Drop).priority(Priority::DataLow).wait() {
            log::debug!("fleet: {name}: {error}");
        }
    }

    /// Calls `hear` with the last part of the key and the message of everything that is told, until the listener is
    /// dropped. It must not wait.
    ///
    /// # Errors
    /// When the session is closed.
    pub fn listen(
        &self,
        name: &str,
        hear: impl Fn(&str, &[u8]) + Send + Sync + 'static,
    ) -> Result<Listener, FleetError> {
        let declared = self.session.declare_subscriber(self.key(name)).callback(move |sample| {
            hear(last(sample.key_expr().as_str()), &sample.payload().to_bytes());
        });
        declared.wait().map(Listener).map_err(failed("cannot listen"))
    }

    /// The messages that are asked under `name`, which may end in `*`.
    ///
    /// # Errors
    /// When the session is closed.
    pub fn requests(&self, name: &str) -> Result<Requests, FleetError> {
        let declared = self.session.declare_queryable(self.key(name)).with(FifoChannel::new(WAITING));
        declared.wait().map(Requests).map_err(failed("cannot answer"))
    }
}

/// Hears until it is dropped.
pub struct Listener(#[expect(dead_code, reason = "dropping it ends it")] Subscriber<()>);

/// Messages that want an answer.
pub struct Requests(Queryable<FifoChannelHandler<Query>>);

impl Requests {
    /// The next one, if one comes in time. One that is too long is refused on the way.
    pub fn next(&self, patience: Duration) -> Option<Request> {
        let query = self.0.recv_timeout(patience).ok()??;
        let request = Request(query);
        if request.payload().len() > MAX_MESSAGE {
            request.answer(Err(format!("a message of more than {MAX_MESSAGE} bytes")));
            return None;
        }
        Some(request)
    }
}

/// A message that wants an answer.
pub struct Request(Query);

impl Request {
    /// The last part of its key: who asks.
    pub fn name(&self) -> &str {
        last(self.0.key_expr().as_str())
    }

    /// The message.
    pub fn payload(&self) -> Cow<'_, [u8]> {
        self.0.payload().map_or(Cow::Borrowed(&[]), zenoh::bytes::ZBytes::to_bytes)
    }

    /// Answers; whoever asked may be gone.
    pub fn answer(&self, answer: Result<Vec<u8>, String>) {
        let sent = match answer {
            Ok(message) => self.0.reply(self.0.key_expr(), message).wait(),
            Err(reason) => self.0.reply_err(reason).wait(),
        };
        if let Err(error) = sent {
            log::debug!("fleet: an answer to {}: {error}", self.0.key_expr());
        }
    }
}

fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(400).collect()
}
