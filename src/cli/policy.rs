//! `fieldtune policy`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use fieldtune::config::{Config, PolicyConfig};
use fieldtune::learner::{Dims, pretrain::Pretrainer};
use fieldtune::nn::Stack;
use fieldtune::nn::weights::EnsembleWeights;
use fieldtune::policy::manifest::Description;
use fieldtune::policy::{Bundle, PolicyOutput, checks, import, prepare_file};
use npyz::WriterBuilder;

use super::ConfigArgs;

/// Work with policy bundles.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Make a bundle from a checkpoint: a folder of seed*/{actor,critic1,critic2}.pt as Off2OnRL published them.
    ///
    /// Nothing in the files is executed. What they do not say (names of the entries, control rate) comes from the
    /// configuration of the robot.
    Import {
        #[command(flatten)]
        config: ConfigArgs,
        /// Folder of the checkpoint.
        source: PathBuf,
        /// Folder of the new bundle.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Make a bundle of untrained networks, to learn from nothing.
    New {
        #[command(flatten)]
        config: ConfigArgs,
        /// Folder of the new bundle.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Say what a bundle holds.
    Inspect {
        /// Folder of the bundle.
        bundle: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a bundle as the publisher would: hashes, shapes, finite weights, golden answers, engines.
    Verify {
        /// Folder of the bundle.
        bundle: PathBuf,
        /// Also run it by this libonnxruntime.so and compare the two engines.
        #[arg(long, value_name = "FILE")]
        onnxruntime: Option<PathBuf>,
        /// Also check that it fits this robot.
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run a bundle on observations and print mean, standard deviation and action.
    Act(ActArgs),
}

/// Run a bundle on observations.
#[derive(clap::Args)]
pub(super) struct ActArgs {
    /// Folder of the bundle.
    bundle: PathBuf,
    /// Observations: .npy of f32, (O) or (K, O).
    #[arg(long, value_name = "FILE.npy", required_unless_present = "linspace")]
    obs: Option<PathBuf>,
    /// One observation that rises evenly from -1 to 1.
    #[arg(long, conflicts_with = "obs")]
    linspace: bool,
    /// Write the actions tanh(mean) as .npy of f32, (K, A), instead of printing.
    #[arg(long, value_name = "FILE.npy")]
    out: Option<PathBuf>,
    /// Also print min(Q1, Q2) of every member at action 0.
    #[arg(long)]
    critics: bool,
    /// Run by this libonnxruntime.so; without it, by the built-in pass.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

pub(super) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Import { config, source, out } => {
            let config = config.load()?;
            let weights = import::import_off2onrl(source)?;
            let mut description = describe(&config, "Off2OnRL agents", "CQL, as published with Off2OnRL");
            description.training_log_std = Some(import::OFF2ONRL_TRAINING_LOG_STD);
            description.provenance.insert("source".into(), file_name(source));
            save(description, weights, out)
        }
        Command::New { config, out } => {
            let config = config.load()?;
            let spaces = &config.robot.spaces;
            let dims = Dims::from(spaces);
            let weights = Pretrainer::new(dims, &config.pretrain, &config.learner, config.run.seed)?.weights()?;
            let mut description = describe(&config, "untrained", "none");
            description.provenance.insert("seed".into(), config.run.seed.to_string());
            save(description, weights, out)
        }
        Command::Inspect { bundle, json } => inspect(bundle, *json),
        Command::Verify { bundle, onnxruntime, config } => verify(bundle, onnxruntime.as_deref(), config.as_deref()),
        Command::Act(args) => act(args),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.display().to_string())
}

fn describe(config: &Config, name: &str, algorithm: &str) -> Description {
    Description {
        name: format!("{} {name}", config.robot.name),
        control_hz: config.robot.control_hz,
        algorithm: algorithm.into(),
        discount: config.learner.discount,
        training_log_std: None,
        spaces: config.robot.spaces.clone(),
        provenance: BTreeMap::new(),
    }
}

fn save(description: Description, weights: EnsembleWeights, out: &Path) -> anyhow::Result<()> {
    let bundle = Bundle::new(description, weights)?;
    bundle.save(out)?;
    inspect(out, false)
}

fn inspect(folder: &Path, json: bool) -> anyhow::Result<()> {
    let bundle = Bundle::load(folder)?;
    let manifest = bundle.manifest();
    if json {
        say!("{}", serde_json::to_string(manifest)?);
        return Ok(());
    }
    let (d, a) = (&manifest.description, &manifest.architecture);
    say!("{}: {}", folder.display(), d.name);
    say!("  ensemble of {}, hidden {:?}, critics: {}", a.ensemble_size, a.hidden, if a.critics { "yes" } else { "no" });
    say!("  {} Hz, discount {}, trained by {}", d.control_hz, d.discount, d.algorithm);
    say!("  log std in [{}, {}]", a.log_std.min, a.log_std.max);
    say!("  observation ({}): {}", d.spaces.observation_dim(), d.spaces.observation.join(", "));
    say!("  action ({}): {}", d.spaces.action_dim(), d.spaces.action.join(", "));
    for (key, value) in &d.provenance {
        say!("  {key}: {value}");
    }
    for (name, file) in &manifest.files {
        say!("  {name:<22} {:>9} bytes  sha256 {}", file.size, file.sha256);
    }
    Ok(())
}

fn engine(library: Option<&Path>) -> PolicyConfig {
    PolicyConfig { onnxruntime: library.map(Path::to_path_buf).unwrap_or_default(), ..PolicyConfig::default() }
}

fn verify(folder: &Path, library: Option<&Path>, robot: Option<&Path>) -> anyhow::Result<()> {
    let bundle = Bundle::load(folder)?;
    let spaces = match robot {
        Some(path) => fieldtune::config::load(path, &[])?.robot.spaces,
        None => bundle.manifest().description.spaces.clone(),
    };
    let prepared = prepare_file(bundle.onnx(), &spaces, &engine(library))?;
    say!("{}: sound; {}", folder.display(), prepared.report);
    Ok(())
}

fn act(args: &ActArgs) -> anyhow::Result<()> {
    let bundle = Bundle::load(&args.bundle)?;
    let spaces = &bundle.manifest().description.spaces;
    let width = spaces.observation_dim();
    let observations = match &args.obs {
        Some(path) => read_npy(path)?,
        None => (0..width).map(|i| -1.0 + 2.0 * i as f32 / (width.max(2) - 1) as f32).collect(),
    };
    ensure!(
        !observations.is_empty() && observations.len().is_multiple_of(width),
        "{} numbers are no rows of {width} observation entries",
        observations.len()
    );
    checks::names(spaces, spaces)?;
    let mut prepared = prepare_file(bundle.onnx(), spaces, &engine(args.onnxruntime.as_deref()))?;
    let mut out = PolicyOutput::default();
    let mut actions = Vec::new();
    for observation in observations.chunks_exact(width) {
        prepared.backend.infer(observation, &mut out)?;
        actions.extend(out.mean().iter().map(|m| m.tanh()));
        if args.out.is_none() {
            say!(
                "mean   {:?}\nstd    {:?}\naction {:?}",
                out.mean(),
                out.std(),
                &actions[actions.len() - out.action_dim..]
            );
            if args.critics {
                say!("min(Q1, Q2) at action 0 by member {:?}", twin_min(bundle.weights(), observation)?);
            }
        }
    }
    if let Some(path) = &args.out {
        write_npy(path, &actions, out.action_dim)?;
        say!("{} actions by {} written to {}", actions.len() / out.action_dim, prepared.report.engine, path.display());
    }
    Ok(())
}

/// `min(Q1_i, Q2_i)(s, 0)` of every member.
fn twin_min(weights: &EnsembleWeights, observation: &[f32]) -> anyhow::Result<Vec<f32>> {
    ensure!(weights.critic1.members > 0, "this bundle has no critics");
    let device = candle_core::Device::Cpu;
    let mut row = observation.to_vec();
    row.resize(weights.critic1.inputs(), 0.0);
    let row = candle_core::Tensor::new(row, &device)?.unsqueeze(0)?;
    let q = |stack| -> anyhow::Result<Vec<f32>> {
        Ok(Stack::from_weights(stack, &device)?.forward_detached(&row)?.flatten_all()?.to_vec1()?)
    };
    Ok(q(&weights.critic1)?.iter().zip(q(&weights.critic2)?).map(|(a, b)| a.min(b)).collect())
}

fn read_npy(path: &Path) -> anyhow::Result<Vec<f32>> {
    let name = || format!("cannot read {} as an .npy of f32", path.display());
    let file = std::fs::File::open(path).with_context(name)?;
    let npy = npyz::NpyFile::new(std::io::BufReader::new(file)).with_context(name)?;
    ensure!(
        npy.order() == npyz::Order::C,
        "{} is in Fortran order; save it with numpy.ascontiguousarray",
        path.display()
    );
    npy.into_vec::<f32>().with_context(name)
}

fn write_npy(path: &Path, values: &[f32], width: usize) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let shape = [(values.len() / width) as u64, width as u64];
    let mut writer =
        npyz::WriteOptions::new().default_dtype().shape(&shape).writer(std::io::BufWriter::new(file)).begin_nd()?;
    writer.extend(values.iter().copied())?;
    Ok(writer.finish()?)
}
