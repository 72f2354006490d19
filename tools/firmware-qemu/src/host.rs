//! A host that says what it likes, frame by frame: what the suite needs and the real host never does.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use fieldtune::clock::monotonic;
use fieldtune::robot::{Exchange, Link as _};
use firmware_bridge::{Command, Frame, Header, Hello, HelloAck, MAX_WIRE, Message, State};

use crate::machine::Line;
use crate::plant::{ACTION, OBSERVATION};

/// Longest wait for an answer of a machine that may have to wait for its processor.
const PATIENCE: Duration = Duration::from_secs(10);

/// A frame that was waited for.
pub(crate) struct Heard {
    /// Its header.
    pub(crate) header: Header,
    /// Its content.
    pub(crate) message: Message,
}

/// The host's end of a line.
pub(crate) struct Host {
    /// The line.
    pub(crate) line: Line,
    session: u32,
    seq: u16,
}

impl Host {
    /// Numbers frames from 0 on.
    pub(crate) fn new(line: Line) -> Self {
        Self { line, session: 0x5e55_0000, seq: 0 }
    }

    /// Sends a message with the next number and returns the number.
    pub(crate) fn send(&mut self, message: Message) -> anyhow::Result<u16> {
        let frame = self.frame(message);
        self.line.send(&frame)?;
        Ok(frame.header.seq)
    }

    fn frame(&mut self, message: Message) -> Frame {
        self.seq = self.seq.wrapping_add(1);
        Frame { header: Header { seq: self.seq, t_us: monotonic().0 as u32, ..Header::default() }, message }
    }

    /// The bytes of a command, with the next number.
    pub(crate) fn command_bytes(&mut self, action: [f32; 2], valid_ms: u8) -> anyhow::Result<(u16, Vec<u8>)> {
        let message = self.command_message(action, valid_ms);
        let frame = self.frame(message);
        let mut bytes = vec![0; MAX_WIRE];
        let len = frame.encode_stream(&mut bytes)?;
        bytes.truncate(len);
        Ok((frame.header.seq, bytes))
    }

    /// Sends a command and returns its number.
    pub(crate) fn command(&mut self, action: [f32; 2], valid_ms: u8) -> anyhow::Result<u16> {
        self.send(self.command_message(action, valid_ms))
    }

    fn command_message(&self, action: [f32; 2], valid_ms: u8) -> Message {
        Message::Command(Command { session: self.session, valid_ms, action: action.into_iter().collect() })
    }

    /// Waits for a frame that `wanted` likes; others are passed over.
    pub(crate) fn wait(&mut self, what: &str, mut wanted: impl FnMut(&Heard) -> bool) -> anyhow::Result<Heard> {
        let until = monotonic().plus(PATIENCE);
        while monotonic() < until {
            if let Some(Frame { header, message }) = self.line.receive(Duration::from_millis(20))? {
                let heard = Heard { header, message };
                if wanted(&heard) {
                    return Ok(heard);
                }
            }
        }
        anyhow::bail!("the board sent no {what}")
    }

    /// Waits for a STATE that `wanted` likes.
    pub(crate) fn state(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Header, &State) -> bool,
    ) -> anyhow::Result<State> {
        let heard =
            self.wait(what, |heard| matches!(&heard.message, Message::State(state) if wanted(&heard.header, state)))?;
        let Message::State(state) = heard.message else { unreachable!("waited for a STATE") };
        Ok(state)
    }

    /// The next STATE after everything that is on its way.
    pub(crate) fn state_now(&mut self) -> anyhow::Result<State> {
        self.exchange()?;
        self.state("STATE", |_, _| true)
    }

    /// Greets the board.
    pub(crate) fn hello(&mut self) -> anyhow::Result<HelloAck> {
        let schema_hash = firmware_bridge::schema_hash(OBSERVATION, ACTION);
        for _ in 0..20 {
            self.send(Message::Hello(Hello { schema_hash, session: self.session }))?;
            let until = monotonic().plus(PATIENCE / 20);
            while monotonic() < until {
                if let Some(Frame { message: Message::HelloAck(ack), .. }) =
                    self.line.receive(Duration::from_millis(20))?
                {
                    ensure!(ack.schema_hash == schema_hash, "the board has other names than this program");
                    return Ok(ack);
                }
            }
        }
        anyhow::bail!("the board does not answer HELLO")
    }

    /// A new session: armed, and at the start of an episode.
    pub(crate) fn begin(&mut self) -> anyhow::Result<()> {
        self.session = self.session.wrapping_add(1);
        self.send(Message::FaultReset)?;
        self.send(Message::Disarm)?;
        self.send(Message::Arm { session: self.session })?;
        let reset = self.send(Message::Reset { episode: 1, seed: 0 })?;
        self.state("STATE after RESET", |header, state| header.ack == reset && state.tick == 0)
            .context("the drive does not arm")?;
        Ok(())
    }

    /// Asks for the time and waits for the answer.
    pub(crate) fn exchange(&mut self) -> anyhow::Result<Exchange> {
        let asked = monotonic().0;
        self.send(Message::TimeRequest { t1_us: asked })?;
        let is_ours = |heard: &Heard| matches!(heard.message, Message::TimeReply { t1_us, .. } if t1_us == asked);
        let heard = self.wait("TIME_REPLY", is_ours)?;
        let t4_us = monotonic().0;
        let Message::TimeReply { t1_us, t2_us, t3_us } = heard.message else { unreachable!("waited for it") };
        Ok(Exchange { t1_us, t2_us, t3_us, t4_us })
    }
}
