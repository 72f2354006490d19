//! Is a buffer sound, and what of it can be saved.

use std::path::Path;

use anyhow::Context;
use fieldtune::replay::{Access, Store, open_damaged};
use serde_json::{Value, json};

use super::folder;

pub(super) fn verify(source: &Path, as_json: bool) -> anyhow::Result<bool> {
    let store = match Store::open(&folder(source), Access::ReadOnly) {
        Ok(store) => store,
        Err(error) if as_json => {
            say!("{}", json!({"usable": false, "reason": error.to_string()}));
            return Ok(false);
        }
        Err(error) => return Err(error).context("the buffer cannot be used"),
    };
    let sound = store.bad_records().total() == 0;
    if as_json {
        say!("{}", describe(&store));
    } else {
        say!("{}", source.display());
        print(&store);
        say!(
            "  {}",
            if sound { "sound" } else { "bad records are skipped by every reader; `data repair` leaves them out" }
        );
    }
    Ok(sound)
}

pub(super) fn repair(source: &Path, out: &Path, as_json: bool) -> anyhow::Result<bool> {
    let store = open_damaged(&folder(source))?;
    let new = fieldtune::replay::repair(&store, out)?;
    if as_json {
        say!("{}", json!({"from": describe(&store), "to": describe(&new), "out": out}));
        return Ok(true);
    }
    say!("{}", source.display());
    print(&store);
    say!(
        "{} records with {} transitions of {} written to {}; run `fieldtune data verify` on it before you rely on it",
        new.len(),
        new.transitions(),
        store.transitions(),
        out.display()
    );
    Ok(true)
}

fn describe(store: &Store) -> Value {
    let layout = store.layout();
    json!({
        "usable": true, "records": store.len(), "capacity": store.capacity(), "transitions": store.transitions(),
        "interventions": store.interventions(), "first_sequence": store.first_sequence(),
        "last_sequence": store.last_sequence(), "overwritten": store.overwritten(), "watermark": store.watermark(),
        "observation_dim": layout.observation_dim, "action_dim": layout.action_dim,
        "schema_hash": format!("{:016x}", layout.schema_hash), "frames": store.frame_shape(),
        "headers_usable": store.usable_headers(), "closed_cleanly": store.was_closed_cleanly(),
        "bad_records": store.bad_records().total(), "bad": store.bad_records(),
    })
}

fn print(store: &Store) {
    let end = if store.was_closed_cleanly() { "closed cleanly" } else { "not closed by its last writer" };
    say!("  header       {} of 2 slots usable, {end}", store.usable_headers());
    say!("  holds        {}", store.layout());
    say!(
        "  records      {} of {}, numbers {} to {}, {} overwritten",
        store.len(),
        store.capacity(),
        store.first_sequence(),
        store.last_sequence(),
        store.overwritten()
    );
    say!("  transitions  {}", store.transitions());
    let bad = store.bad_records();
    say!(
        "  bad          {}: {} checksum, {} misplaced, {} earlier lap, {} not finite, {} frame",
        bad.total(),
        bad.checksum,
        bad.misplaced,
        bad.earlier_lap,
        bad.not_finite,
        bad.frame
    );
    for (slot, reason) in &bad.first {
        say!("    slot {slot}: {reason}");
    }
    let more = bad.total() - bad.first.len() as u64;
    if more > 0 {
        say!("    and {more} more");
    }
}
