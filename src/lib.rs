//! fieldtune: the runtime that lets a robot get better on the job.
//!
//! A real-time control loop runs a policy ensemble. A background learner does SAC updates on a replay buffer that
//! survives power cuts and balances offline data against what the robot just did (Off2OnRL, Lee et al., CoRL 2021).
//! New weights come back through a publisher that builds, checks and warms up a policy and hands it to the loop
//! between two ticks. The robot is known only as firmware frames over a link; a simulated robot is a process behind
//! the same bytes.
//!
//! # Map
//!
//! Imports point down only (`tests/layering.rs`); modules of one layer never import each other.
//!
//! | layer | module | what it is |
//! |---|---|---|
//! | 5 | [`runtime`] | threads, channels, shutdown; the only place that spawns |
//! | 4 | [`control`] | one tick: observe, act, limit, apply, record, swap |
//! | 4 | [`learner`] | how many updates are due, one update, checkpoints, offline pretraining |
//! | 4 | [`golden`] | reference numbers from elsewhere against the code that the learner runs |
//! | 3 | [`rl`] | the losses of the papers as pure functions |
//! | 2 | [`camera`] | images of cameras, made into what the policy sees |
//! | 3 | [`fleet`] | what travels between robots and a learner elsewhere, each step exactly once |
//! | 2 | [`robot`] | a robot behind firmware frames; links |
//! | 2 | [`policy`] | bundles, the engines that run them, checks, importers |
//! | 2 | [`replay`] | the buffer on disk, the priority tree, the samplers |
//! | 1 | [`config`] | typed configuration; every problem at once |
//! | 1 | [`telemetry`] | counters, metric records, the report |
//! | 1 | [`episode`] | data sets |
//! | 1 | [`nn`] | stacked networks, tanh-Gaussian, Adam; no RL words |
//! | 0 | [`kernels`] | fused operations of the learner on a GPU |
//! | 0 | [`pixels`] | images of single cameras out of frames and back; PNG |
//! | 0 | [`clock`] | the only reader of the time |
//! | 0 | [`spaces`] | observation and action names, step records, minibatches |
//!
//! Beside the crate: `firmware-bridge` (no_std: frames, drive-state machine, limits, watchdog; both ends use it),
//! `tools/simulator` (robots that play the microcontroller) and `tools/firmware-qemu` (the microcontroller itself, in an
//! emulator). The command line in `src/cli` is the only place that
//! prints and the only one that uses `anyhow`.
//!
//! # Threads of a real-time run
//!
//! | thread | may block on | allocates | logs |
//! |---|---|---|---|
//! | control | its deadline | not after the first tick | no |
//! | camera (`camera.source`) | its cameras | yes | yes |
//! | recorder | the disk | yes | yes |
//! | learner | its inbox, the device, its rest, sensors of the machine | yes | yes |
//! | publisher | files, building a session | yes | yes |
//! | socket | its clients | yes | yes |
//! | person (`intervention.listen`) | its datagrams | yes | yes |
//! | page (`--serve`) | nothing | yes | yes |
//! | fleet (`learner.remote`) | disk, network | yes | yes |
//! | main | events | yes | yes |

pub mod camera;
pub mod clock;
pub mod config;
pub mod control;
pub mod episode;
pub mod fleet;
pub mod golden;
pub mod kernels;
pub mod learner;
pub mod nn;
pub mod pixels;
pub mod policy;
pub mod replay;
pub mod rl;
pub mod robot;
pub mod runtime;
pub mod spaces;
pub mod telemetry;
