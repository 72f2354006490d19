//! Recorded steps as an MCAP log, for Foxglove, PlotJuggler, Rerun and their kin.
//!
//! | channel | fields | log time |
//! |---|---|---|
//! | `/observation` | one number per entry, by name | when the observation was taken |
//! | `/action` | one number per entry, as really applied | when the observation was used |
//! | `/step` | episode, step, reward, flags, policy generation | when the observation was used |
//! | `/camera`, or `/camera_00` and so on | a frame that an observation sees for the first time, as PNG | when it was taken |
//!
//! Messages are JSON with JSON schemas. Times are those of the run's clock: they begin anywhere, not in 1970.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Seek, Write};
use std::sync::Arc;

use mcap::records::MessageHeader;
use mcap::{McapError, MessageStream, WriteOptions, Writer};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::camera_log::{self, Planes};
use crate::spaces::{Frame, Spaces, StepFlags, StepRecord};

/// Bytes of a chunk: what a truncated log loses at most.
const CHUNK: u64 = 64 * 1024;

/// In the metadata of a channel whose times were made from a rate.
const NOMINAL: &str = "nominal_stamps";

/// Writes step records as messages.
pub struct StepLog<W: Write + Seek> {
    writer: Writer<W>,
    spaces: Spaces,
    channels: [u16; 3],
    cameras: Vec<u16>,
    /// The frame that was written last.
    frame: Option<Arc<Frame>>,
    steps: u32,
}

impl<W: Write + Seek> StepLog<W> {
    /// Begins a log of a robot with these names and so many cameras; `nominal` says that nobody measured the times.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(out: W, spaces: Spaces, cameras: usize, nominal: bool) -> Result<Self, McapError> {
        let notes: BTreeMap<_, _> =
            nominal.then(|| (String::from(NOMINAL), String::from("true"))).into_iter().collect();
        let options = WriteOptions::new()
            .compression(None)
            .chunk_size(Some(CHUNK))
            .library(concat!("fieldtune ", env!("CARGO_PKG_VERSION")));
        let mut writer = options.create(out)?;
        let mut channel = |topic: &str, properties: Map<String, Value>| {
            let title = format!("fieldtune.{}", topic.trim_start_matches('/'));
            let schema = json!({"title": title, "type": "object", "properties": properties});
            let schema = writer.add_schema(&title, "jsonschema", schema.to_string().as_bytes())?;
            writer.add_channel(schema, topic, "json", &notes)
        };
        let kinds = |kind: &str, names: &[&str]| -> Map<String, Value> {
            names.iter().map(|name| ((*name).into(), json!({"type": kind}))).collect()
        };
        let named = |names: &[String]| kinds("number", &names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut step = kinds("integer", &["episode", "step", "policy_generation"]);
        step.extend(kinds("number", &["reward"]));
        step.extend(kinds("boolean", &FLAGS.map(|(name, _)| name)));
        let channels = [
            channel("/observation", named(&spaces.observation))?,
            channel("/action", named(&spaces.action))?,
            channel("/step", step)?,
        ];
        let image = camera_log::schema().to_string();
        let mut camera = |topic: &String| {
            let schema = writer.add_schema(camera_log::SCHEMA, "jsonschema", image.as_bytes())?;
            writer.add_channel(schema, topic, "json", &notes)
        };
        let cameras = camera_log::topics(cameras).iter().map(&mut camera).collect::<Result<_, _>>()?;
        Ok(Self { writer, spaces, channels, cameras, frame: None, steps: 0 })
    }

    /// Adds a record; one that is only an observation has no action and no step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn step(&mut self, record: &StepRecord) -> Result<(), McapError> {
        if let Some(frame) = &record.frame
            && self.frame.as_ref() != Some(frame)
        {
            self.images(frame, record.capture_us)?;
            self.frame = Some(Arc::clone(frame));
        }
        let (channels, sequence) = (self.channels, self.steps);
        let header = |channel: usize, time_us: u64| {
            let time = time_us.saturating_mul(1000);
            MessageHeader { channel_id: channels[channel], sequence, log_time: time, publish_time: time }
        };
        message(&mut self.writer, header(0, record.capture_us), &Named(&self.spaces.observation, &record.observation))?;
        if !record.flags.contains(StepFlags::OBSERVATION_ONLY) {
            message(&mut self.writer, header(1, record.use_us), &Named(&self.spaces.action, &record.action))?;
            let mut fields = json!({"episode": record.episode, "step": record.step, "reward": record.reward,
                "policy_generation": record.policy_generation});
            for (name, flag) in FLAGS {
                fields[name] = record.flags.contains(flag).into();
            }
            message(&mut self.writer, header(2, record.use_us), &fields)?;
        }
        self.steps += 1;
        Ok(())
    }

    /// Adds the images of all cameras; a frame without a time of its own has that of the observation.
    fn images(&mut self, frame: &Frame, capture_us: u64) -> Result<(), McapError> {
        let time = if frame.capture_ns == 0 { capture_us.saturating_mul(1000) } else { frame.capture_ns };
        let cameras = self.cameras.len();
        for (camera, channel_id) in self.cameras.iter().enumerate() {
            let image = camera_log::compressed(frame, cameras, camera, time).map_err(std::io::Error::other)?;
            let header =
                MessageHeader { channel_id: *channel_id, sequence: self.steps, log_time: time, publish_time: time };
            message(&mut self.writer, header, &image)?;
        }
        Ok(())
    }

    /// Completes the log with its index; returns the number of records.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<u32, McapError> {
        self.writer.finish()?;
        Ok(self.steps)
    }
}

/// The flags that say something about a step of this robot.
const FLAGS: [(&str, StepFlags); 7] = [
    ("terminated", StepFlags::TERMINATED),
    ("truncated", StepFlags::TRUNCATED),
    ("gap_before", StepFlags::GAP),
    ("stale", StepFlags::STALE),
    ("intervention", StepFlags::INTERVENTION),
    ("success", StepFlags::SUCCESS),
    ("failure", StepFlags::FAILURE),
];

fn message<W: Write + Seek>(
    writer: &mut Writer<W>,
    header: MessageHeader,
    fields: &impl Serialize,
) -> Result<(), McapError> {
    let bytes = serde_json::to_vec(fields).map_err(std::io::Error::from)?;
    writer.write_to_known_channel(&header, &bytes)
}

/// Numbers by name, in the robot's order; a value without a name gets none, a number that is not finite is null.
struct Named<'a>(&'a [String], &'a [f32]);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(self.1))
    }
}

/// What a log of [`StepLog`] holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logged {
    /// Names of the entries.
    pub spaces: Spaces,
    /// All records, in order. Those of steps without a measured time have none (0).
    pub records: Vec<StepRecord>,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogProblem {
    /// Not MCAP, cut or damaged.
    #[error("the log is damaged or was cut (the `mcap recover` of others mends that): {0}")]
    Mcap(#[from] McapError),
    /// A message that is not what this program writes.
    #[error("message {message} on {topic} is none of fieldtune's: {reason}")]
    Message {
        /// Which, from 0.
        message: usize,
        /// Its topic.
        topic: String,
        /// What is wrong.
        reason: String,
    },
}

/// Reads a whole log that [`StepLog`] wrote.
///
/// # Errors
/// When it is damaged, or was written by another program.
pub fn read_step_log(bytes: &[u8]) -> Result<Logged, LogProblem> {
    let mut log = Logged::default();
    let mut sight = Sight::default();
    for (number, message) in MessageStream::new(bytes)?.enumerate() {
        let message = message?;
        let topic = message.channel.topic.clone();
        let measured = !message.channel.metadata.contains_key(NOMINAL);
        let time_ns = if measured { message.log_time } else { 0 };
        let added = if camera_log::is_camera(&topic) {
            sight.planes.add(time_ns, &message.data)
        } else {
            log.add(&topic, time_ns / 1000, &message.data, &mut sight)
        };
        added.map_err(|reason| LogProblem::Message { message: number, topic, reason })?;
    }
    Ok(log)
}

/// What the next observation sees: the images since the last frame, or that frame.
#[derive(Default)]
struct Sight {
    planes: Planes,
    newest: Option<Arc<Frame>>,
}

impl Sight {
    fn frame(&mut self) -> Result<Option<Arc<Frame>>, String> {
        if let Some(frame) = self.planes.take() {
            if let Some(before) = self.newest.as_ref().filter(|before| before.shape != frame.shape) {
                return Err(format!("its images make {} instead of {}", frame.shape, before.shape));
            }
            self.newest = Some(Arc::new(frame));
        }
        Ok(self.newest.clone())
    }
}

impl Logged {
    fn add(&mut self, topic: &str, time_us: u64, data: &[u8], sight: &mut Sight) -> Result<(), String> {
        let wrong = |e: serde_json::Error| e.to_string();
        let beyond = |()| String::from("more entries than a record has");
        if topic == "/observation" {
            let Entries(names, values) = serde_json::from_slice(data).map_err(wrong)?;
            same(&mut self.spaces.observation, names)?;
            // An observation alone goes on where the last step ended.
            let (episode, step) = self.records.last().map_or((0, 0), |last| (last.episode, last.step + 1));
            let frame = sight.frame()?;
            let mut record = StepRecord { episode, step, capture_us: time_us, frame, ..StepRecord::default() };
            record.flags = StepFlags::OBSERVATION_ONLY;
            record.observation.extend_from_slice(&values).map_err(|_| beyond(()))?;
            self.records.push(record);
            return Ok(());
        }
        let record = self.records.last_mut().ok_or("there is no observation before it")?;
        record.use_us = time_us;
        if topic == "/action" {
            let Entries(names, values) = serde_json::from_slice(data).map_err(wrong)?;
            same(&mut self.spaces.action, names)?;
            record.action.clear();
            return record.action.extend_from_slice(&values).map_err(|_| beyond(()));
        }
        let fields: Value = serde_json::from_slice(data).map_err(wrong)?;
        let number =
            |name: &str| fields[name].as_u64().and_then(|v| u32::try_from(v).ok()).ok_or(format!("no `{name}`"));
        (record.episode, record.step) = (number("episode")?, number("step")?);
        record.policy_generation = number("policy_generation")?;
        record.reward = fields["reward"].as_f64().ok_or("no `reward`")? as f32;
        record.flags = StepFlags::default();
        FLAGS
            .into_iter()
            .filter(|(name, _)| fields[name] == Value::Bool(true))
            .for_each(|(_, f)| record.flags.insert(f));
        Ok(())
    }
}

/// All messages of a topic name the same entries in the same order.
fn same(known: &mut Vec<String>, names: Vec<String>) -> Result<(), String> {
    if known.is_empty() {
        *known = names;
    } else if *known != names {
        return Err(format!("its entries are {names:?}, those before are {known:?}"));
    }
    Ok(())
}

/// Names and numbers of an object, in its order.
struct Entries(Vec<String>, Vec<f32>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let (mut names, mut values) = (Vec::new(), Vec::new());
                while let Some((name, value)) = map.next_entry()? {
                    names.push(name);
                    values.push(value);
                }
                Ok(Entries(names, values))
            }
        }
        from.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::spaces::FrameShape;

    /// Of two cameras; two steps share one.
    fn frame_of(number: u32) -> Arc<Frame> {
        let shape = FrameShape { width: 3, height: 2, channels: 6 };
        let pixels = (0..36).map(|byte| (7 * byte + 5 * number) as u8).collect();
        Arc::new(Frame { shape, sequence: number.into(), capture_ns: 999_000_123 + u64::from(number), pixels })
    }

    fn log(steps: u32) -> Vec<u8> {
        written(steps, false)
    }

    fn written(steps: u32, frames: bool) -> Vec<u8> {
        let spaces = Spaces { observation: vec!["cos".into(), "sin".into()], action: vec!["torque".into()] };
        let mut bytes = Cursor::new(Vec::new());
        let mut log = StepLog::new(&mut bytes, spaces, 2, false).unwrap();
        for step in 0..steps {
            let time = 1_000_000 + 50_000 * u64::from(step);
            let mut record =
                StepRecord { episode: 3, step, capture_us: time, use_us: time + 700, ..Default::default() };
            record.reward = -0.5;
            record.observation.extend_from_slice(&[step as f32, 0.25]).unwrap();
            record.frame = frames.then(|| frame_of(step / 2));
            if step + 1 == steps {
                record.flags.insert(StepFlags::OBSERVATION_ONLY);
            } else {
                record.action.push(0.5).unwrap();
            }
            log.step(&record).unwrap();
        }
        assert_eq!(log.finish().unwrap(), steps);
        bytes.into_inner()
    }

    #[test]
    fn messages_read_back_equal_with_their_times() {
        let bytes = log(3);
        let messages: Vec<_> = mcap::MessageStream::new(&bytes).unwrap().map(Result::unwrap).collect();
        let found: Vec<_> = messages.iter().map(|m| (m.channel.topic.as_str(), m.log_time / 1000)).collect();
        assert_eq!(found.len(), 7, "{found:?}");
        assert_eq!(found[0], ("/observation", 1_000_000));
        assert_eq!(found[1], ("/action", 1_000_700));
        assert_eq!(found[6], ("/observation", 1_100_000));
        let value = |i: usize| serde_json::from_slice::<Value>(&messages[i].data).unwrap();
        assert_eq!(value(3), json!({"cos": 1.0, "sin": 0.25}));
        assert_eq!(value(4), json!({"torque": 0.5}));
        let step = value(5);
        assert_eq!((&step["episode"], &step["reward"], &step["terminated"]), (&json!(3), &json!(-0.5), &json!(false)));
        let schema = messages[0].channel.schema.as_ref().unwrap();
        assert_eq!(schema.encoding, "jsonschema");
        let schema: Value = serde_json::from_slice(&schema.data).unwrap();
        assert_eq!(schema["properties"]["sin"]["type"], "number");
    }

    #[test]
    fn a_log_is_read_as_it_was_written_and_a_damaged_one_is_not() {
        let bytes = log(5);
        let read = read_step_log(&bytes).unwrap();
        assert_eq!(read.spaces.observation, ["cos", "sin"]);
        assert_eq!(read.records.len(), 5);
        let step = &read.records[3];
        assert_eq!((step.episode, step.step, step.capture_us, step.use_us), (3, 3, 1_150_000, 1_150_700));
        assert_eq!((&step.observation[..], &step.action[..], step.reward), (&[3.0, 0.25][..], &[0.5][..], -0.5));
        assert_eq!((step.flags, read.records[4].flags), (StepFlags::default(), StepFlags::OBSERVATION_ONLY));
        for cut in (0..bytes.len()).step_by(37) {
            assert!(read_step_log(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in (0..bytes.len()).step_by(11) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            let _ = read_step_log(&damaged);
        }
    }

    #[test]
    fn frames_are_written_once_and_read_back_for_every_step_that_saw_them() {
        let bytes = written(5, true);
        let topics = |topic: &str| {
            let all = mcap::MessageStream::new(&bytes).unwrap().map(Result::unwrap);
            all.filter(|message| message.channel.topic == topic).map(|message| message.log_time).collect::<Vec<_>>()
        };
        assert_eq!(topics("/camera_00"), [999_000_123, 999_000_124, 999_000_125]);
        assert_eq!(topics("/camera_01").len(), 3);
        let read = read_step_log(&bytes).unwrap();
        for (step, record) in (0..).zip(&read.records) {
            let (found, wanted) = (record.frame.as_ref().unwrap(), frame_of(step / 2));
            assert_eq!(
                (found.shape, found.capture_ns, &found.pixels),
                (wanted.shape, wanted.capture_ns, &wanted.pixels)
            );
        }
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            let _ = read_step_log(&damaged);
        }
    }

    #[test]
    fn a_truncated_log_gives_back_what_is_whole() {
        let bytes = log(2000);
        let cut = &bytes[..bytes.len() / 2];
        let options = mcap::read::Options::IgnoreEndMagic;
        let read =
            mcap::MessageStream::new_with_options(cut, options.into()).unwrap().take_while(Result::is_ok).count();
        assert!(read > 1500, "{read} of 5999 messages");
    }
}
