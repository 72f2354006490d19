//! The learner's side: records of robots into its replay, each exactly once.
//!
//! What was taken from a robot is known from the replay itself: the upper bits of an episode number name the robot, and
//! its newest record is how far the learner has got with it. The ledger beside the replay holds the same for the records
//! up to the last sync, because a ring forgets, and the names. After a power cut the replay may have holes behind that
//! sync: what lies behind the first is forgotten, and the robots send it again.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::FleetError;
use super::wire::{Batch, Mark};
use super::{EPISODE_BITS, MOST_SPOOLS};
use crate::replay::{Replay, replace};
use crate::spaces::{StepFlags, StepRecord};

/// Name of the ledger in the folder of the replay.
const FILE: &str = "fleet.json";

/// What is known of all robots, as of the record `sequence`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ledger {
    sequence: u64,
    steps: u64,
    robots: Vec<Robot>,
}

/// A robot with one replay folder; its place in the ledger is its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Robot {
    name: String,
    spool: String,
    mark: Option<Mark>,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// How far the learner has got with the robot.
    pub mark: Option<Mark>,
    /// Number of the robot in this replay.
    pub robot: usize,
    /// The records that were new, with their episode numbers in this replay.
    pub records: Vec<StepRecord>,
}

/// Takes records of robots.
#[derive(Debug)]
pub struct Intake {
    ledger: Ledger,
    path: PathBuf,
}

impl Intake {
    /// Of a replay that lies in the folder `dir`.
    ///
    /// # Errors
    /// When the ledger is damaged, or does not belong to this replay.
    pub fn open(dir: &Path, replay: &mut Replay) -> Result<Self, FleetError> {
        let path = dir.join(FILE);
        if replay.online().frame_shape().is_some() {
            return Err(FleetError::Frames);
        }
        let mut intake = Self { ledger: Ledger::default(), path };
        match fs::read(&intake.path) {
            Ok(text) => intake.ledger = serde_json::from_slice(&text).map_err(|e| intake.damaged(&e.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(intake.damaged(&error.to_string())),
        }
        intake.catch_up(replay)?;
        Ok(intake)
    }

    fn damaged(&self, why: &str) -> FleetError {
        let reason = format!("{why}; begin a new run.directory, and the robots send again what they still hold");
        FleetError::File { path: self.path.clone(), reason }
    }

    /// Reads the records behind the last save.
    fn catch_up(&mut self, replay: &mut Replay) -> Result<(), FleetError> {
        if self.ledger.sequence > replay.online().last_sequence() {
            return Err(self.damaged("the ledger knows more records than the replay holds"));
        }
        let first = (self.ledger.sequence + 1).max(replay.online().first_sequence());
        close(replay, first)?;
        let mut record = StepRecord::default();
        for sequence in first..=replay.online().last_sequence() {
            replay.online().record(sequence, &mut record)?;
            if !record.flags.contains(StepFlags::SEAM) {
                let (robot, episode) = episode_of(&record);
                if robot as usize >= self.ledger.robots.len() {
                    return Err(self.damaged("the replay holds records that came from no robot of the ledger"));
                }
                self.count(robot as usize, Mark { episode, step: record.step }, &record);
            }
        }
        self.ledger.sequence = replay.online().last_sequence();
        Ok(())
    }

    fn count(&mut self, robot: usize, mark: Mark, record: &StepRecord) {
        let known = &mut self.ledger.robots[robot].mark;
        *known = Some(known.map_or(mark, |known| known.max(mark)));
        self.ledger.steps += u64::from(!record.flags.contains(StepFlags::OBSERVATION_ONLY));
    }

    /// Steps taken over the life of the replay.
    pub fn steps(&self) -> u64 {
        self.ledger.steps
    }

    /// Robots seen over the life of the replay.
    pub fn robots(&self) -> usize {
        self.ledger.robots.len()
    }

    /// Name of a robot and how far the learner has got with it.
    pub fn robot(&self, number: usize) -> Option<(&str, Option<Mark>)> {
        self.ledger.robots.get(number).map(|robot| (robot.name.as_str(), robot.mark))
    }

    /// Appends what is new in a batch of `robot`. Steps come whole: of the newest record the end is not known yet, it is
    /// lent as the last observation of the one before ([`StepFlags::SEAM`]) and comes again with the next batch.
    ///
    /// # Errors
    /// When an episode number is too large, there is no room, or the replay refuses. Records before the failure are
    /// taken, and the robot's mark says so.
    pub fn take(&mut self, replay: &mut Replay, robot: &str, batch: &Batch) -> Result<Taken, FleetError> {
        let number = self.number(replay, robot, batch.spool)?;
        let mut records: Vec<StepRecord> = Vec::new();
        if batch.after > self.ledger.robots[number].mark {
            // This side has lost what it had (a power cut): the answer sends the robot back.
            return Ok(Taken { mark: self.ledger.robots[number].mark, robot: number, records });
        }
        for (index, record) in batch.records.iter().enumerate() {
            let mark = Mark::from(record);
            if self.ledger.robots[number].mark.is_some_and(|known| mark <= known) {
                continue;
            }
            if record.episode >> EPISODE_BITS != 0 {
                return Err(FleetError::Episode { episode: record.episode });
            }
            let mut own = record.clone();
            own.episode |= (number as u32) << EPISODE_BITS;
            let open = index + 1 == batch.records.len() && !record.flags.contains(StepFlags::OBSERVATION_ONLY);
            if open {
                if records.last().is_some_and(|before| leads_to(before, &own)) {
                    lend(replay, own)?;
                }
                break;
            }
            append(replay, &own)?;
            self.count(number, mark, &own);
            records.push(own);
        }
        Ok(Taken { mark: self.ledger.robots[number].mark, robot: number, records })
    }

    /// The robot's number; a new robot is on the disk before its first record is.
    fn number(&mut self, replay: &mut Replay, name: &str, spool: [u8; 16]) -> Result<usize, FleetError> {
        let spool = format!("{:032x}", u128::from_be_bytes(spool));
        let known = self.ledger.robots.iter().position(|robot| robot.name == name && robot.spool == spool);
        if let Some(number) = known {
            return Ok(number);
        }
        if self.ledger.robots.len() >= MOST_SPOOLS as usize {
            return Err(FleetError::Spools);
        }
        self.ledger.robots.push(Robot { name: name.to_owned(), spool, mark: None });
        if let Err(error) = self.save(replay) {
            self.ledger.robots.pop();
            return Err(error);
        }
        Ok(self.ledger.robots.len() - 1)
    }

    /// Makes everything so far survive a power cut.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save(&mut self, replay: &mut Replay) -> Result<(), FleetError> {
        replay.sync()?;
        self.ledger.sequence = replay.online().last_sequence();
        let text = serde_json::to_vec(&self.ledger).map_err(|e| self.damaged(&e.to_string()))?;
        Ok(replace(&self.path, &text)?)
    }
}

/// Brings the records from `first` on into the state between two batches: up to the first hole, the newest one whole or
/// lent. What is taken away comes again.
fn close(replay: &mut Replay, first: u64) -> Result<(), FleetError> {
    let mut newest = StepRecord::default();
    let last = replay.online().last_sequence();
    if let Some(hole) = (first..=last).find(|sequence| replay.online().record(*sequence, &mut newest).is_err()) {
        log::warn!("replay: record {hole} was lost; the {} from there on are asked for again", last + 1 - hole);
        replay.forget_from(hole)?;
    }
    let last = replay.online().last_sequence();
    let open = last >= first
        && replay.online().record(last, &mut newest).is_ok()
        && !newest.flags.contains(StepFlags::OBSERVATION_ONLY);
    if open {
        // Its writer was killed before the observation behind it.
        replay.forget_from(last)?;
        lend(replay, newest)?;
    }
    Ok(())
}

/// Appends only the observation of a record, as the last one of those before.
fn lend(replay: &mut Replay, mut record: StepRecord) -> Result<(), FleetError> {
    record.flags.insert(StepFlags::OBSERVATION_ONLY);
    record.flags.insert(StepFlags::SEAM);
    append(replay, &record)
}

/// The robot of a record in a learner's replay and the episode number that the robot gave it.
pub fn episode_of(record: &StepRecord) -> (u32, u32) {
    (record.episode >> EPISODE_BITS, record.episode & ((1 << EPISODE_BITS) - 1))
}

fn leads_to(before: &StepRecord, after: &StepRecord) -> bool {
    before.episode == after.episode
        && before.step.checked_add(1) == Some(after.step)
        && !after.flags.contains(StepFlags::GAP)
        && !before.flags.contains(StepFlags::OBSERVATION_ONLY)
}

fn append(replay: &mut Replay, record: &StepRecord) -> Result<(), FleetError> {
    let before = replay.online().last_sequence();
    replay.append(record)?;
    if replay.online().last_sequence() == before { Err(FleetError::Full) } else { Ok(()) }
}
