//! `fieldtune policy`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use fieldtune::config::{Config, PolicyConfig};
use fieldtune::learner::{Dims, pretrain::Pretrainer};
use fieldtune::nn::Stack;
use fieldtune::nn::weights::EnsembleWeights;
use fieldtune::policy::foreign::{self, ForeignPolicy};
use fieldtune::policy::manifest::{Description, EncoderFacts, FileEntry, Manifest, Residual};
use fieldtune::policy::onnxruntime::Runtime;
use fieldtune::policy::{AnyBundle, Bundle, PolicyBackend, PolicyOutput, checks, prepare_file, residual, weights_file};
use fieldtune::spaces::{FrameShape, Spaces};
use npyz::WriterBuilder;

use super::ConfigArgs;

/// Work with policy bundles.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Import(super::policy_import::Args),
    /// Make a bundle of untrained networks, to learn from nothing; with a camera configured, of ones that see its images.
    New {
        #[command(flatten)]
        config: ConfigArgs,
        /// Make a residual on policy.base that adds at most so much to an entry of its action, above 0, at most 2.
        #[arg(long, value_name = "SCALE")]
        residual: Option<f32>,
        /// Folder of the new bundle.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Say what a bundle or an ONNX actor holds.
    Inspect {
        /// Folder of the bundle, or an .onnx file.
        bundle: PathBuf,
        /// The output of an .onnx file that is the action, where there are several.
        #[arg(long, value_name = "NAME")]
        output: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a bundle as the publisher would: hashes, shapes, finite weights, golden answers, engines.
    Verify {
        /// Folder of the bundle, or an .onnx file.
        bundle: PathBuf,
        /// The output of an .onnx file that is the action, where there are several.
        #[arg(long, value_name = "NAME")]
        output: Option<String>,
        /// Also run it by this libonnxruntime.so and compare the two engines.
        #[arg(long, value_name = "FILE")]
        onnxruntime: Option<PathBuf>,
        /// Also check that it fits this robot.
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Take the ONNX file or the weights out of a bundle, checked on the way.
    Export {
        /// Folder of the bundle.
        bundle: PathBuf,
        /// Where the policy goes: ONNX.
        #[arg(long, value_name = "FILE.onnx", required_unless_present = "weights")]
        onnx: Option<PathBuf>,
        /// Where actors, critics, targets and temperature go: safetensors (docs/policy-bundle.md).
        #[arg(long, value_name = "FILE.safetensors")]
        weights: Option<PathBuf>,
    },
    /// Run a bundle or an ONNX actor on observations and print mean, standard deviation and action.
    Act(ActArgs),
}

/// Run a bundle or an ONNX actor on observations.
#[derive(clap::Args)]
pub(super) struct ActArgs {
    /// Folder of the bundle, or an .onnx file.
    bundle: PathBuf,
    /// The output of an .onnx file that is the action, where there are several.
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Observations: .npy of f32, (O) or (K, O).
    #[arg(long, value_name = "FILE.npy", required_unless_present = "linspace")]
    obs: Option<PathBuf>,
    /// One observation that rises evenly from -1 to 1.
    #[arg(long, conflicts_with = "obs")]
    linspace: bool,
    /// Images of a policy with eyes: .npy of u8, (height, width, channels) or (K, height, width, channels).
    #[arg(long, value_name = "FILE.npy")]
    frames: Option<PathBuf>,
    /// Write the actions, those of the mean or what the ONNX actor gives, as .npy of f32, (K, A), instead of printing.
    #[arg(long, value_name = "FILE.npy")]
    out: Option<PathBuf>,
    /// Also print min(Q1, Q2) of every member at action 0.
    #[arg(long)]
    critics: bool,
    /// The bundle of the frozen policy below, where this one is a residual.
    #[arg(long, value_name = "FOLDER")]
    base: Option<PathBuf>,
    /// Run by this libonnxruntime.so; without it, by the built-in pass.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

pub(super) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Import(args) => super::policy_import::run(args),
        Command::New { config, residual, out } => new(&config.load()?, *residual, out),
        Command::Inspect { bundle, output, json } => inspect(bundle, output.as_deref(), *json),
        Command::Verify { bundle, output, onnxruntime, config } => {
            verify(bundle, output.as_deref(), onnxruntime.as_deref(), config.as_deref())
        }
        Command::Export { bundle, onnx, weights } => export(bundle, onnx.as_deref(), weights.as_deref()),
        Command::Act(args) => act(args),
    }
}

fn new(config: &Config, residual: Option<f32>, out: &Path) -> anyhow::Result<()> {
    let dims = Dims::from(&config.robot.spaces);
    let frame = config.camera.shape();
    let new = Pretrainer::seeing(frame, dims, &config.pretrain, &config.learner, config.run.seed)?;
    let mut weights = new.weights()?;
    let mut description = describe(config, "untrained", "none");
    description.provenance.insert("seed".into(), config.run.seed.to_string());
    if let Some(scale) = residual {
        ensure!(!config.policy.base.as_os_str().is_empty(), "--residual needs policy.base: the policy below");
        let base = residual::base(&config.robot.spaces, &config.policy, None)?;
        description.residual = Some(Residual { base_sha256: base.policy_sha256().into(), scale });
        description.provenance.insert("base".into(), config.policy.base.display().to_string());
        residual::start_at_base(&mut weights.actor);
    }
    save(description, weights, out)
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.display().to_string())
}

pub(super) fn describe(config: &Config, name: &str, algorithm: &str) -> Description {
    Description {
        name: format!("{} {name}", config.robot.name),
        control_hz: config.robot.control_hz,
        algorithm: algorithm.into(),
        discount: config.learner.discount,
        training_log_std: None,
        residual: None,
        spaces: config.robot.spaces.clone(),
        provenance: BTreeMap::new(),
    }
}

pub(super) fn save(description: Description, weights: EnsembleWeights, out: &Path) -> anyhow::Result<()> {
    let bundle = Bundle::new(description, weights)?;
    bundle.save(out)?;
    inspect(out, None, false)
}

/// A bundle of either kind, or an ONNX actor.
enum Subject {
    Bundle(AnyBundle),
    Actor(Vec<u8>, foreign::Description),
}

impl Subject {
    fn load(path: &Path, output: Option<&str>) -> anyhow::Result<Self> {
        if path.is_file() {
            let name = || format!("cannot read {}", path.display());
            let length = std::fs::metadata(path).with_context(name)?.len() as usize;
            ensure!(length <= foreign::MAX_BYTES, foreign::ForeignError::TooLarge { bytes: length });
            let bytes = std::fs::read(path).with_context(name)?;
            let description = foreign::inspect(&bytes, output)?;
            return Ok(Self::Actor(bytes, description));
        }
        ensure!(output.is_none(), "--output is for .onnx files; a bundle knows its output");
        Ok(Self::Bundle(AnyBundle::load(path)?))
    }
}

pub(super) fn inspect(path: &Path, output: Option<&str>, json: bool) -> anyhow::Result<()> {
    let subject = Subject::load(path, output)?;
    match &subject {
        Subject::Bundle(AnyBundle::Ensemble(bundle)) if json => say!("{}", serde_json::to_string(bundle.manifest())?),
        Subject::Bundle(AnyBundle::Foreign(bundle)) if json => say!("{}", serde_json::to_string(bundle.manifest())?),
        Subject::Actor(_, description) if json => say!("{}", serde_json::to_string(description)?),
        Subject::Bundle(AnyBundle::Ensemble(bundle)) => inspect_ensemble(path, bundle.manifest()),
        Subject::Bundle(AnyBundle::Foreign(bundle)) => {
            let (manifest, d) = (bundle.manifest(), &bundle.manifest().description);
            say!("{}: {}", path.display(), d.name);
            say!("  {} Hz, no weights to learn from", d.control_hz);
            say_actor(&foreign::inspect(bundle.onnx(), Some(&manifest.foreign.output))?);
            say_spaces(&d.spaces, &d.provenance, &manifest.files);
        }
        Subject::Actor(_, description) => {
            say!("{}", path.display());
            say_actor(description);
        }
    }
    Ok(())
}

fn say_actor(d: &foreign::Description) {
    let (i, producer) = (&d.interface, if d.producer.is_empty() { "unknown" } else { &d.producer });
    say!("  an ONNX actor of others, by {producer}: operator set {}, IR {}", d.opset, d.ir_version);
    say!("  `{}` [{}] -> `{}` [{}]", i.input, i.observation_dim, i.output, i.action_dim);
    say!("  outputs {}; {} numbers in its weights", d.outputs.join(", "), d.parameters);
    say!("  operators {}", d.operators.join(", "));
}

fn say_spaces(spaces: &Spaces, provenance: &BTreeMap<String, String>, files: &BTreeMap<String, FileEntry>) {
    say!("  observation ({}): {}", spaces.observation_dim(), spaces.observation.join(", "));
    say!("  action ({}): {}", spaces.action_dim(), spaces.action.join(", "));
    for (key, value) in provenance {
        say!("  {key}: {value}");
    }
    for (name, file) in files {
        say!("  {name:<22} {:>9} bytes  sha256 {}", file.size, file.sha256);
    }
}

fn inspect_ensemble(path: &Path, manifest: &Manifest) {
    let (d, a) = (&manifest.description, &manifest.architecture);
    say!("{}: {}", path.display(), d.name);
    say!("  ensemble of {}, hidden {:?}, critics: {}", a.ensemble_size, a.hidden, if a.critics { "yes" } else { "no" });
    if let Some(EncoderFacts { encoders, image, channels, dense, proprioception }) = &a.encoder {
        let of = if *encoders == 1 { "one encoder for all" } else { "an encoder for each" };
        let beside = if *proprioception { ", and the observation" } else { "" };
        say!("  sees {image}: {of}, convolutions {channels:?}, {dense} features{beside}");
    }
    say!("  {} Hz, discount {}, trained by {}", d.control_hz, d.discount, d.algorithm);
    say!("  log std in [{}, {}]", a.log_std.min, a.log_std.max);
    if let Some(Residual { base_sha256, scale }) = &d.residual {
        say!(
            "  a residual: clip(base + {scale} tanh(z), -1, 1) on the base whose policy.onnx has sha256 {base_sha256}"
        );
    }
    say_spaces(&d.spaces, &d.provenance, &manifest.files);
}

fn engine(library: Option<&Path>) -> PolicyConfig {
    PolicyConfig { onnxruntime: library.map(Path::to_path_buf).unwrap_or_default(), ..PolicyConfig::default() }
}

fn verify(path: &Path, output: Option<&str>, library: Option<&Path>, robot: Option<&Path>) -> anyhow::Result<()> {
    let subject = Subject::load(path, output)?;
    let robot = robot.map(|path| fieldtune::config::load(path, &[])).transpose()?.map(|config| config.robot.spaces);
    let report = match &subject {
        Subject::Bundle(AnyBundle::Ensemble(bundle)) => {
            let spaces = robot.as_ref().unwrap_or(&bundle.manifest().description.spaces);
            prepare_file(bundle.onnx(), spaces, &engine(library))?.report.to_string()
        }
        Subject::Bundle(AnyBundle::Foreign(bundle)) => {
            let spaces = robot.as_ref().unwrap_or(&bundle.manifest().description.spaces);
            bundle.prepare(spaces, &engine(library))?.report.to_string()
        }
        Subject::Actor(bytes, description) => {
            let mut policy = actor(bytes, description, library)?;
            if let Some(spaces) = &robot {
                checks::dimensions(&policy, spaces)?;
            }
            let (width, rows) = (description.interface.observation_dim, 20);
            checks::responds(&mut policy, &checks::Inputs::new(width, None, rows))?;
            format!("an ONNX actor of others, {width} -> {}, run by {}", policy.action_dim(), policy.engine())
        }
    };
    say!("{}: sound; {report}", path.display());
    Ok(())
}

fn export(folder: &Path, onnx: Option<&Path>, weights: Option<&Path>) -> anyhow::Result<()> {
    let bundle = AnyBundle::load(folder)?;
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        say!("{} bytes written to {}", bytes.len(), path.display());
        anyhow::Ok(())
    };
    if let Some(path) = weights {
        write(path, &weights_file::encode(bundle.ensemble()?.weights())?)?;
    }
    if let (Some(_), Some(Residual { base_sha256, scale })) = (onnx, bundle.residual()) {
        say!("the ONNX file holds the residual alone; what is executed is clip(base + {scale} action, -1, 1)");
        say!("with the base whose policy.onnx has sha256 {base_sha256}");
    }
    match (onnx, &bundle) {
        (Some(path), AnyBundle::Ensemble(bundle)) => write(path, bundle.onnx()),
        (Some(path), AnyBundle::Foreign(bundle)) => write(path, bundle.onnx()),
        (None, _) => Ok(()),
    }
}

fn actor(bytes: &[u8], description: &foreign::Description, library: Option<&Path>) -> anyhow::Result<ForeignPolicy> {
    let library = library.ok_or(foreign::ForeignError::NeedsRuntime)?;
    Ok(ForeignPolicy::new(Runtime::load(library)?, bytes, &description.interface)?)
}

fn act(args: &ActArgs) -> anyhow::Result<()> {
    let library = args.onnxruntime.as_deref();
    match Subject::load(&args.bundle, args.output.as_deref())? {
        Subject::Bundle(AnyBundle::Ensemble(bundle)) => act_ensemble(args, *bundle),
        Subject::Bundle(AnyBundle::Foreign(bundle)) => {
            // Checked as for a robot; then the graph's own numbers, which the way through tanh would round.
            bundle.prepare(&bundle.manifest().description.spaces, &engine(library))?;
            let description = foreign::inspect(bundle.onnx(), Some(&bundle.manifest().foreign.output))?;
            act_foreign(args, actor(bundle.onnx(), &description, library)?)
        }
        Subject::Actor(bytes, description) => act_foreign(args, actor(&bytes, &description, library)?),
    }
}

fn observations(args: &ActArgs, width: usize) -> anyhow::Result<Vec<f32>> {
    let observations = match &args.obs {
        Some(path) => read_npy(path)?.1,
        None => (0..width).map(|i| -1.0 + 2.0 * i as f32 / (width.max(2) - 1) as f32).collect(),
    };
    ensure!(
        !observations.is_empty() && observations.len().is_multiple_of(width),
        "{} numbers are no rows of {width} observation entries",
        observations.len()
    );
    Ok(observations)
}

/// As many images as observations, one behind the other; empty for a policy without eyes.
fn images(args: &ActArgs, frame: Option<FrameShape>, rows: usize) -> anyhow::Result<Vec<u8>> {
    let (path, FrameShape { width, height, channels }) = match (&args.frames, frame) {
        (Some(path), Some(shape)) => (path, shape),
        (None, None) => return Ok(Vec::new()),
        (Some(_), None) => bail!("--frames: this policy looks at no image"),
        (None, Some(_)) => bail!("this policy looks at images: name them with --frames FILE.npy"),
    };
    let (shape, images) = read_npy::<u8>(path)?;
    let wanted = [height, width, channels].map(u64::from);
    ensure!(
        shape.ends_with(&wanted) && images.len() == rows * frame.map_or(0, FrameShape::bytes),
        "{} has the shape {shape:?}; needed are {rows} images of {wanted:?} (height, width, channels)",
        path.display()
    );
    Ok(images)
}

fn act_foreign(args: &ActArgs, mut policy: ForeignPolicy) -> anyhow::Result<()> {
    ensure!(!args.critics, "an ONNX actor of others has no critics");
    let (width, action_dim, mut actions) = (policy.observation_dim(), policy.action_dim(), Vec::new());
    for observation in observations(args, width)?.chunks_exact(width) {
        let action = policy.action(observation)?;
        if args.out.is_none() {
            say!("action {action:?}");
        }
        actions.extend_from_slice(action);
    }
    written(args, &actions, action_dim, policy.engine())
}

fn act_ensemble(args: &ActArgs, bundle: Bundle) -> anyhow::Result<()> {
    let any = AnyBundle::Ensemble(Box::new(bundle));
    let (bundle, spaces) = (any.ensemble()?, any.spaces());
    let width = spaces.observation_dim();
    let config = PolicyConfig { base: args.base.clone().unwrap_or_default(), ..engine(args.onnxruntime.as_deref()) };
    let mut prepared = any.source().prepare(spaces, &config)?;
    let mut out = PolicyOutput::default();
    let mut actions = Vec::new();
    let observations = observations(args, width)?;
    let rows = observations.chunks_exact(width);
    let images = images(args, prepared.backend.frame(), rows.len())?;
    let bytes = images.len() / rows.len();
    for (row, observation) in rows.enumerate() {
        prepared.backend.infer(observation, &images[row * bytes..(row + 1) * bytes], &mut out)?;
        let action: Vec<f32> = (0..out.action_dim).map(|d| out.action(d, 0.0)).collect();
        if args.out.is_none() {
            say!("mean   {:?}\nstd    {:?}\naction {action:?}", out.mean(), out.std());
            if args.critics {
                say!("min(Q1, Q2) at action 0 by member {:?}", twin_min(bundle.weights(), observation)?);
            }
        }
        actions.extend(action);
    }
    written(args, &actions, out.action_dim, prepared.report.engine)
}

fn written(args: &ActArgs, actions: &[f32], action_dim: usize, engine: &str) -> anyhow::Result<()> {
    if let Some(path) = &args.out {
        write_npy(path, actions, action_dim)?;
        say!("{} actions by {engine} written to {}", actions.len() / action_dim, path.display());
    }
    Ok(())
}

/// `min(Q1_i, Q2_i)(s, 0)` of every member.
fn twin_min(weights: &EnsembleWeights, observation: &[f32]) -> anyhow::Result<Vec<f32>> {
    ensure!(weights.critic1.members > 0, "this bundle has no critics");
    ensure!(weights.actor.eyes.is_none(), "--critics is for critics that see the observation alone");
    let device = candle_core::Device::Cpu;
    let mut row = observation.to_vec();
    row.resize(weights.critic1.inputs(), 0.0);
    let row = candle_core::Tensor::new(row, &device)?.unsqueeze(0)?;
    let q = |stack| -> anyhow::Result<Vec<f32>> {
        Ok(Stack::from_weights(stack, &device)?.forward_detached(&row)?.flatten_all()?.to_vec1()?)
    };
    Ok(q(&weights.critic1)?.iter().zip(q(&weights.critic2)?).map(|(a, b)| a.min(b)).collect())
}

/// Shape and numbers, row-major.
fn read_npy<T: npyz::Deserialize>(path: &Path) -> anyhow::Result<(Vec<u64>, Vec<T>)> {
    let name = || format!("cannot read {} as an .npy of {}", path.display(), std::any::type_name::<T>());
    let file = std::fs::File::open(path).with_context(name)?;
    let npy = npyz::NpyFile::new(std::io::BufReader::new(file)).with_context(name)?;
    ensure!(
        npy.order() == npyz::Order::C,
        "{} is in Fortran order; save it with numpy.ascontiguousarray",
        path.display()
    );
    let shape = npy.shape().to_vec();
    Ok((shape, npy.into_vec().with_context(name)?))
}

fn write_npy(path: &Path, values: &[f32], width: usize) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let shape = [(values.len() / width) as u64, width as u64];
    let mut writer =
        npyz::WriteOptions::new().default_dtype().shape(&shape).writer(std::io::BufWriter::new(file)).begin_nd()?;
    writer.extend(values.iter().copied())?;
    Ok(writer.finish()?)
}
