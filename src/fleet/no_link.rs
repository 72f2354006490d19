//! A build without the feature `fleet`: no link can be opened.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use super::error::FleetError;
use crate::config::FleetConfig;

/// Which end of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Connects.
    Robot,
    /// Listens.
    Learner,
}

/// What cannot exist here.
pub struct Link(Infallible);

/// What cannot exist here.
pub struct Listener;

/// What cannot exist here.
pub struct Requests(Infallible);

/// What cannot exist here.
pub struct Request(Infallible);

#[expect(missing_docs, clippy::missing_errors_doc, reason = "see link.rs")]
impl Link {
    pub fn open(_: &FleetConfig, _: Side) -> Result<Self, FleetError> {
        Err(FleetError::NotBuilt)
    }

    pub fn place(&self) -> &str {
        match self.0 {}
    }

    pub fn ask(&self, _: &str, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, FleetError> {
        match self.0 {}
    }

    pub fn tell(&self, _: &str, _: Vec<u8>) {
        match self.0 {}
    }

    pub fn listen(&self, _: &str, _: impl Fn(&str, &[u8]) + Send + Sync + 'static) -> Result<Listener, FleetError> {
        match self.0 {}
    }

    pub fn requests(&self, _: &str) -> Result<Requests, FleetError> {
        match self.0 {}
    }
}

#[expect(missing_docs, reason = "see link.rs")]
impl Requests {
    pub fn next(&self, _: Duration) -> Option<Request> {
        match self.0 {}
    }
}

#[expect(missing_docs, reason = "see link.rs")]
impl Request {
    pub fn name(&self) -> &str {
        match self.0 {}
    }

    pub fn payload(&self) -> Cow<'_, [u8]> {
        match self.0 {}
    }

    pub fn answer(&self, _: Result<Vec<u8>, String>) {
        match self.0 {}
    }
}
