//! `fieldtune data export RUN --out FILE.mcap`.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::Context;
use fieldtune::episode::Dataset;
use fieldtune::pixels;
use fieldtune::replay::Store;
use fieldtune::spaces::{FrameShape, Spaces, StepRecord};
use fieldtune::telemetry::StepLog;

/// Every readable record of a buffer, oldest first, with its own stamps and flags.
pub(super) fn export_store(store: &Store, out: &Path, spaces: Spaces) -> anyhow::Result<bool> {
    let mut log = begin(out, spaces, store.frame_shape(), false)?;
    let mut record = StepRecord::default();
    let mut bad = 0;
    if !store.is_empty() {
        for sequence in store.first_sequence()..=store.last_sequence() {
            match store.record_with_frame(sequence, &mut record) {
                Ok(()) => log.step(&record)?,
                Err(_) => bad += 1,
            }
        }
    }
    say!("{} records written to {}", log.finish()?, out.display());
    if bad > 0 {
        say!("{bad} bad records are left out");
    }
    Ok(bad == 0)
}

/// All episodes of a data set.
pub(super) fn export_data(data: &Dataset, nominal_hz: Option<f64>, out: &Path, spaces: Spaces) -> anyhow::Result<bool> {
    let stamps = data.stamps(nominal_hz, out)?;
    let shape = data.images.as_ref().map(|images| images.shape);
    let mut log = begin(out, spaces, shape, nominal_hz.is_some())?;
    for (episode, steps) in data.episodes().enumerate() {
        for mut record in data.to_records(episode) {
            let stamp = stamps[(steps.start + record.step as usize).min(steps.end - 1)];
            (record.capture_us, record.use_us) = (stamp, stamp);
            log.step(&record)?;
        }
    }
    say!("{} records written to {}", log.finish()?, out.display());
    if data.final_observations.is_empty() {
        say!(
            "its last observations are not known: the last step of an episode that was cut has no action and no reward"
        );
    }
    Ok(true)
}

fn begin(
    out: &Path,
    spaces: Spaces,
    shape: Option<FrameShape>,
    nominal: bool,
) -> anyhow::Result<StepLog<BufWriter<File>>> {
    let cameras = shape.map_or(Some(0), |shape| pixels::cameras(shape.channels));
    let cameras = cameras.with_context(|| {
        format!("{}: its images are not of cameras (3 channels each); only .npz takes them", out.display())
    })?;
    let file = File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(StepLog::new(BufWriter::new(file), spaces, cameras, nominal)?)
}
