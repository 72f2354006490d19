//! The losses, policies, optimiser and encoder of the program against reference numbers computed in float64 elsewhere,
//! by the code behind `fieldtune check golden`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

mod places;

use std::collections::HashMap;
use std::path::Path;

use candle_core::Device;
use fieldtune::golden::{check_file, check_folder};
use fieldtune::kernels::{Order, on_host};
use safetensors::tensor::{Dtype, TensorView, serialize};

#[test]
fn every_golden_file_agrees() {
    let Some(folder) = places::shared("golden") else { return };
    let agree = || {
        let reports = check_folder(&folder, &Device::Cpu).unwrap();
        let wrong: Vec<_> = reports.iter().filter(|report| !report.passed()).collect();
        assert!(wrong.is_empty(), "{} golden files disagree: {wrong:#?}", wrong.len());
    };
    agree();
    if on_host(Order::Ascending, agree).is_none() {
        eprintln!("skipped: golden files through the GPU's kernels (--features host-kernels)");
    }
}

/// A file of one tensor type after the other: inputs in f32, expected results in f64.
fn write(path: &Path, settings: &[(&str, &str)], tensors: &[(&str, &[usize], &[f64])]) {
    let bytes: Vec<(&str, &[usize], Dtype, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, numbers)| {
            if name.starts_with("in.") {
                (*name, *shape, Dtype::F32, numbers.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect())
            } else {
                (*name, *shape, Dtype::F64, numbers.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        })
        .collect();
    let views =
        bytes.iter().map(|(name, shape, dtype, data)| (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
    let settings: HashMap<String, String> = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    std::fs::write(path, serialize(views.collect::<Vec<_>>(), Some(settings)).unwrap()).unwrap();
}

/// Adam's first step is the learning rate against the sign of the gradient.
const ADAM: &[(&str, &str)] = &[
    ("schema", "1"),
    ("kind", "adam_polyak"),
    ("lr", "0.5"),
    ("beta1", "0.9"),
    ("beta2", "0.999"),
    ("eps", "0"),
    ("tau", "0.25"),
];

fn with(change: (&'static str, &'static str)) -> Vec<(&'static str, &'static str)> {
    ADAM.iter().map(|setting| if setting.0 == change.0 { change } else { *setting }).collect()
}

/// Report of a file with one parameter of an unusual name, and without some of the results that the kind may have.
fn report(settings: &[(&str, &str)], results: &[(&str, &[usize], &[f64])]) -> fieldtune::golden::CaseReport {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("unseen.safetensors");
    let inputs: [(&str, &[usize], &[f64]); 3] = [
        ("in.param.of_mine", &[2], &[1.0, -1.0]),
        ("in.target.of_mine", &[2], &[0.0, 0.0]),
        ("in.gradient.of_mine", &[1, 2], &[3.0, -7.0]),
    ];
    write(&path, settings, &[&inputs, results].concat());
    check_file(&path, &Device::Cpu)
}

#[test]
fn files_never_seen_before_are_understood() {
    let good = report(ADAM, &[("out.param.of_mine", &[1, 2], &[0.5, -0.5])]);
    assert!(good.passed() && good.quantities.len() == 1, "{good:?}");
    let off = report(ADAM, &[("out.param.of_mine", &[1, 2], &[0.5, -0.50001])]);
    assert!(!off.passed() && off.failure.is_none() && !off.quantities[0].passed, "{off:?}");
    let nearly = report(ADAM, &[("out.target.of_mine", &[1, 2], &[0.125, -0.125_000_3])]);
    assert!(nearly.passed() && nearly.quantities[0].max_absolute > 2e-7, "{nearly:?}");
}

#[test]
fn what_is_not_understood_fails_and_says_why() {
    let results: &[(&str, &[usize], &[f64])] = &[("out.param.of_mine", &[1, 2], &[0.5, -0.5])];
    let failure = |settings: &[(&str, &str)], results| report(settings, results).failure.unwrap();
    assert!(failure(&with(("schema", "2")), results).contains("`schema` is `2`"));
    assert!(failure(&with(("kind", "adam")), results).contains("`kind` is `adam`"));
    assert!(failure(&with(("lr", "fast")), results).contains("`lr` is `fast`"));
    assert!(failure(&ADAM[..3], results).contains("`beta1` is missing"));
    assert!(failure(ADAM, &[]).contains("expects no result"));
    assert!(failure(ADAM, &[("out.speed", &[1], &[1.0])]).contains("never compared: out.speed"));
    assert!(failure(ADAM, &[("out.param.of_mine", &[3], &[1.0; 3])]).contains("has shape"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.safetensors");
    std::fs::write(&path, b"no tensors here").unwrap();
    assert!(check_folder(dir.path(), &Device::Cpu).unwrap()[0].failure.is_some());
    std::fs::remove_file(path).unwrap();
    assert!(check_folder(dir.path(), &Device::Cpu).is_err());
}
