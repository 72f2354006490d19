//! Replay (layer 2): buffers that survive their writer, and balanced draws from them.
//!
//! A [`Store`] is one buffer, in memory or in a folder on disk. [`Replay`] joins the read-only offline buffer and
//! the online buffer of a run, keeps their priorities in a [`SumTree`], and fills minibatches. [`import`] turns a
//! data set into a buffer.
//!
//! It does not compute density ratios, does not know episodes beyond their numbers, and starts no thread. Appends,
//! draws and priorities belong to one thread at a time, the learner's; the control thread never touches a buffer,
//! because writing a page of a mapped file can wait for the disk. A mapped file that somebody else shortens kills
//! the process (SIGBUS): leave the files alone while a run has them.
//!
#![doc = include_str!("../../docs/replay-format.md")]

mod balanced;
mod budget;
mod draw;
mod error;
mod export;
mod files;
mod frames;
mod header;
mod import;
mod layout;
mod meta;
mod priority_file;
mod recording;
mod region;
mod repair;
mod sampler;
mod scan;
mod slot_set;
mod store;
mod sum_tree;

pub use balanced::BalancedSettings;
pub use budget::Budget;
pub use error::{HeaderProblem, ReplayError};
pub use export::{episodes, export};
pub(crate) use files::replace;
pub use frames::Seen;
pub use import::{import, open_offline};
pub(crate) use layout::flags;
pub use layout::{Layout, MAX_AGE_US};
pub use recording::Recording;
pub use region::Region;
pub use repair::{open_damaged, repair};
pub use sampler::{Replay, ReplayState, ReplayStats};
pub use scan::{BadReason, BadRecords};
pub use store::{Access, Store};
pub use sum_tree::SumTree;
