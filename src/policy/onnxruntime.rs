//! ONNX Runtime as an engine: the shared library is found at run time, one environment per process.
//!
//! [`Runtime::load`] opens the library that the configuration names and explains why when it cannot;
//! [`OrtPolicy`] runs one exported policy with one thread. `ort`'s own `run_binding` allocates for every bound output,
//! so [`OrtPolicy::infer`](super::PolicyBackend::infer) calls the two C functions behind it: no Rust allocation per
//! run (ONNX Runtime itself allocates inside). The input is bound anew for every run: bindings to a GPU copy at bind
//! time and would otherwise act on an old observation.
//!
//! Sessions are made and dropped by the publisher (milliseconds), never by the control thread, which only runs them.

#![allow(unsafe_code, reason = "running a bound session without allocation needs the C functions of ONNX Runtime")]

use std::ffi::{CStr, CString, c_void};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::Allocator;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{IoBinding, Session};
use ort::sys::{OrtApiBase, OrtStatusPtr};
use ort::value::{Outlet, Tensor, TensorElementType};
use ort::{AsPointer, LoadDynamicError};

use super::onnx_eyes::IMAGE;
use super::{MAX_ACTION, PolicyBackend, PolicyError, PolicyOutput, check_image, check_observation, check_output};
use crate::spaces::FrameShape;

/// Why ONNX Runtime, or a session in it, is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Asked for by name, but the configuration names no library.
    #[error(
        "policy.engine = \"onnxruntime\" needs policy.onnxruntime = \"<path of libonnxruntime.so>\" (tools/setup-native fetches one)"
    )]
    NoPath,
    /// The file cannot be read.
    #[error("cannot read the ONNX Runtime library {path}: {source}")]
    Read {
        /// What was configured.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a whole shared library for this processor.
    #[error(
        "{path} is no library for this processor: {found}; needed is a whole ELF file of 64 bit, machine {machine}"
    )]
    Architecture {
        /// What was configured.
        path: PathBuf,
        /// What the file's head says.
        found: String,
        /// ELF number of this processor.
        machine: u16,
    },
    /// The loader refused it.
    #[error("cannot load ONNX Runtime: {0}")]
    Load(#[from] LoadDynamicError),
    /// Another library is in this process already.
    #[error("{loaded} is loaded already; a process holds one ONNX Runtime, restart it to use {path}")]
    Other {
        /// The one in use.
        loaded: PathBuf,
        /// The one asked for.
        path: PathBuf,
    },
    /// The model has other inputs or outputs than a policy.
    #[error(
        "ONNX Runtime sees {direction} `{name}` as {found}, a policy has float32 [1, n] there, or uint8 [1, height, width, channels] for an image"
    )]
    Interface {
        /// `input` or `output`.
        direction: &'static str,
        /// Which one.
        name: String,
        /// Its type in words.
        found: String,
    },
    /// ONNX Runtime refused the environment or the model.
    #[error("ONNX Runtime refuses: {0}")]
    Refused(#[from] ort::Error),
}

/// The library, loaded once per process.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
    /// As it was asked for: the file may be replaced on disk while its first version runs.
    configured: PathBuf,
    path: PathBuf,
    name: String,
}

static LOADED: Mutex<Option<&'static Runtime>> = Mutex::new(None);

impl Runtime {
    /// Loads the library, or returns the one that is there. It stays for the life of the process.
    ///
    /// # Errors
    /// When the file is missing, for another processor, no ONNX Runtime of at least 1.17, or another one than the
    /// library in use.
    pub fn load(path: &Path) -> Result<&'static Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = loaded.filter(|r| r.configured == path) {
            return Ok(runtime);
        }
        let read = |source| RuntimeError::Read { path: path.to_path_buf(), source };
        let absolute = path.canonicalize().map_err(read)?;
        let mut head = [0; 64];
        let mut file = File::open(&absolute).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        file.read_exact(&mut head).map_err(read)?;
        check_elf(&absolute, &head, length)?;
        if let Some(runtime) = *loaded {
            let other = || RuntimeError::Other { loaded: runtime.path.clone(), path: absolute.clone() };
            return if runtime.path == absolute { Ok(runtime) } else { Err(other()) };
        }
        let environment = ort::init_from(&absolute)?.with_telemetry(false).with_logger(Arc::new(log_line)).build()?;
        // The environment starts with every level on.
        environment.set_log_level(LogLevel::Warning);
        let name = format!("onnxruntime {}", version(&absolute).unwrap_or("of unknown version"));
        let runtime: &'static Self =
            Box::leak(Box::new(Self { environment, configured: path.to_path_buf(), path: absolute, name }));
        *loaded = Some(runtime);
        Ok(runtime)
    }

    /// Name and version.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What the loader does not say: for a library of another processor its message is "no such file", and a truncated
/// one ends the process with SIGBUS.
fn check_elf(path: &Path, head: &[u8; 64], length: u64) -> Result<(), RuntimeError> {
    let expected: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let sections = head[0x28..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    // The table of sections lies behind everything that is mapped.
    let end = sections.saturating_add(u64::from(half(0x3a)) * u64::from(half(0x3c)));
    let (elf, machine) = (head.starts_with(b"\x7fELF"), half(18));
    let found = match (elf, head[4], machine) {
        (false, ..) => String::from("no ELF file"),
        (_, 2, machine) if machine == expected && end <= length => return Ok(()),
        (_, 2, machine) if machine == expected => format!("truncated, {length} of {end} bytes"),
        (_, class, machine) => format!("ELF class {class}, machine {machine}"),
    };
    Err(RuntimeError::Architecture { path: path.to_path_buf(), found, machine: expected })
}

/// The version that the loaded library states, which `ort` reads but does not hand on.
fn version(path: &Path) -> Option<&'static str> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: the library is in the process already (`RTLD_NOLOAD` finds it and loads nothing) and `ort` never
    // unloads it, so its functions and its version text live as long as the process. `OrtGetApiBase` has had this
    // signature since 1.0; null pointers are refused before use.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
        if library.is_null() {
            return None;
        }
        let symbol = libc::dlsym(library, c"OrtGetApiBase".as_ptr());
        let base =
            std::mem::transmute::<*mut c_void, Option<unsafe extern "system" fn() -> *const OrtApiBase>>(symbol)?();
        if base.is_null() {
            return None;
        }
        CStr::from_ptr(((*base).GetVersionString)()).to_str().ok()
    }
}

fn log_line(level: LogLevel, category: &str, _id: &str, location: &str, message: &str) {
    let level = match level {
        LogLevel::Fatal | LogLevel::Error => log::Level::Error,
        LogLevel::Warning => log::Level::Warn,
        LogLevel::Info => log::Level::Debug,
        LogLevel::Verbose => log::Level::Trace,
    };
    log::log!(target: "onnxruntime", level, "{category} {location}: {message}");
}

/// A session of one thread whose inputs and outputs, float32 `[1, n]` each, and perhaps an image, live in memory that
/// stays.
pub(super) struct Bound {
    // The binding before the tensors it points to.
    binding: IoBinding,
    session: Session,
    input: CString,
    observation: Tensor<f32>,
    image: Option<Image>,
    outputs: Vec<Tensor<f32>>,
    pub(super) engine: &'static str,
}

/// The image input, uint8 `[1, height, width, channels]`.
struct Image {
    name: CString,
    shape: FrameShape,
    pixels: Tensor<u8>,
}

impl Bound {
    /// Makes a session from the bytes of an ONNX file with this input, perhaps an image, and at least these outputs.
    pub(super) fn new(
        runtime: &'static Runtime,
        bytes: &[u8],
        input: &str,
        image: Option<&str>,
        outputs: &[&str],
    ) -> Result<Self, RuntimeError> {
        let interface = |direction, name: &str, found| RuntimeError::Interface { direction, name: name.into(), found };
        let session = builder(runtime)?.commit_from_memory(bytes)?;
        let image = image.and_then(|name| session.inputs().iter().find(|outlet| outlet.name() == name));
        let image = image.map(Image::new).transpose()?;
        if session.inputs().len() != 1 + usize::from(image.is_some()) {
            return Err(interface("input", input, format!("one of {} inputs", session.inputs().len())));
        }
        let tensor = |width: usize| Tensor::<f32>::new(&Allocator::default(), [1, width]);
        let observation = tensor(width("input", input, session.inputs())?)?;
        let mut binding = session.create_binding()?;
        let mut bound = Vec::with_capacity(outputs.len());
        for name in outputs {
            let mut output = tensor(width("output", name, session.outputs())?)?;
            binding.bind_output(*name, &mut output)?;
            bound.push(output);
        }
        let input = CString::new(input).map_err(|_| interface("input", "", String::from("a name with a NUL")))?;
        Ok(Self { binding, session, input, observation, image, outputs: bound, engine: runtime.name() })
    }

    /// Length of the input.
    pub(super) fn width(&self) -> usize {
        self.observation.extract_tensor().1.len()
    }

    /// Size of the image, if there is one.
    pub(super) fn frame(&self) -> Option<FrameShape> {
        self.image.as_ref().map(|image| image.shape)
    }

    /// An output of the last run.
    pub(super) fn output(&self, index: usize) -> &[f32] {
        self.outputs[index].extract_tensor().1
    }

    /// Binds the observation, of [`Bound::width`], and the image, of [`Bound::frame`], and runs the session.
    pub(super) fn run(&mut self, observation: &[f32], pixels: &[u8]) -> Result<(), PolicyError> {
        self.observation.extract_tensor_mut().1.copy_from_slice(observation);
        if let Some(image) = &mut self.image {
            image.pixels.extract_tensor_mut().1.copy_from_slice(pixels);
        }
        let api = ort::api();
        // SAFETY: `binding`, `observation`, `image` and `session` are live objects of this runtime, owned by `self`, and
        // `&mut self` keeps every other use away; the names are C strings of `self`. The two inputs outlive the
        // binding's use of them: they are never replaced and are dropped after the binding. The outputs were bound by
        // `new` to tensors of the shapes that the session states. Null run options mean the defaults.
        unsafe {
            status((api.BindInput)(self.binding.ptr().cast_mut(), self.input.as_ptr(), self.observation.ptr()))?;
            if let Some(Image { name, pixels, .. }) = &self.image {
                status((api.BindInput)(self.binding.ptr().cast_mut(), name.as_ptr(), pixels.ptr()))?;
            }
            status((api.RunWithBinding)(self.session.ptr().cast_mut(), ptr::null(), self.binding.ptr()))
        }
    }
}

impl Image {
    fn new(outlet: &Outlet) -> Result<Self, RuntimeError> {
        let wrong = || RuntimeError::Interface {
            direction: "input",
            name: outlet.name().into(),
            found: outlet.dtype().to_string(),
        };
        let kind = outlet.dtype();
        let (Some(TensorElementType::Uint8), Some(&[1, height, width, channels])) =
            (kind.tensor_type(), kind.tensor_shape().map(|s| &s[..]))
        else {
            return Err(wrong());
        };
        let number = |n: i64| u16::try_from(n).ok().filter(|n| *n > 0).ok_or_else(wrong);
        let shape = FrameShape { width: number(width)?, height: number(height)?, channels: number(channels)? };
        let pixels = Tensor::<u8>::new(&Allocator::default(), [1, height, width, channels])?;
        Ok(Self { name: CString::new(outlet.name()).map_err(|_| wrong())?, shape, pixels })
    }
}

/// An exported policy in an ONNX Runtime session of one thread.
pub struct OrtPolicy {
    bound: Bound,
    observation_dim: usize,
    action_dim: usize,
}

impl OrtPolicy {
    /// Makes a session from the bytes of an ONNX file with input `obs`, perhaps `image`, and outputs `mean` and `std`.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the model, or its inputs and outputs are not those of a policy.
    pub fn new(runtime: &'static Runtime, bytes: &[u8]) -> Result<Self, RuntimeError> {
        let bound = Bound::new(runtime, bytes, "obs", Some(IMAGE), &["mean", "std"])?;
        let (action_dim, std_dim) = (bound.output(0).len(), bound.output(1).len());
        if action_dim > MAX_ACTION || std_dim != action_dim {
            let found = format!("{action_dim} means and {std_dim} deviations");
            return Err(RuntimeError::Interface { direction: "output", name: String::from("mean"), found });
        }
        Ok(Self { observation_dim: bound.width(), action_dim, bound })
    }
}

impl PolicyBackend for OrtPolicy {
    fn infer(&mut self, observation: &[f32], image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        check_observation(observation, self.observation_dim)?;
        if let Some(shape) = self.bound.frame() {
            check_image(image, shape)?;
        }
        self.bound.run(observation, image)?;
        *out = PolicyOutput { action_dim: self.action_dim, ..PolicyOutput::default() };
        for (index, values) in [&mut out.mean, &mut out.std].into_iter().enumerate() {
            values[..self.action_dim].copy_from_slice(self.bound.output(index));
        }
        check_output(out)
    }

    fn frame(&self) -> Option<FrameShape> {
        self.bound.frame()
    }

    fn engine(&self) -> &'static str {
        self.bound.engine
    }

    fn observation_dim(&self) -> usize {
        self.observation_dim
    }

    fn action_dim(&self) -> usize {
        self.action_dim
    }
}

fn builder(runtime: &Runtime) -> Result<SessionBuilder, ort::Error> {
    Ok(Session::builder(&runtime.environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?)
}

/// `n` of an input or output that is float32 `[1, n]`, or `[any, n]`.
fn width(direction: &'static str, name: &str, outlets: &[Outlet]) -> Result<usize, RuntimeError> {
    let outlet = outlets.iter().find(|o| o.name() == name);
    let found = || outlet.map_or_else(|| String::from("absent"), |o| o.dtype().to_string());
    let wrong = || RuntimeError::Interface { direction, name: name.into(), found: found() };
    let kind = outlet.ok_or_else(wrong)?.dtype();
    match (kind.tensor_type(), kind.tensor_shape().map(|s| &s[..])) {
        (Some(TensorElementType::Float32), Some(&[1 | -1, n])) if n > 0 => Ok(n as usize),
        _ => Err(wrong()),
    }
}

/// Turns a status into an error without the heap and releases it.
///
/// # Safety
/// `status` was returned by a function of this runtime and not released.
unsafe fn status(status: OrtStatusPtr) -> Result<(), PolicyError> {
    if status.0.is_null() {
        return Ok(());
    }
    let api = ort::api();
    let mut message = heapless::String::new();
    // SAFETY: the caller promises a live status; its message is NUL-terminated and lives until the release below,
    // which is the last use.
    let code = unsafe {
        let text = CStr::from_ptr((api.GetErrorMessage)(status.0));
        // A full message drops the rest of it.
        for c in text.to_bytes().iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { ' ' }) {
            if message.push(c).is_err() {
                break;
            }
        }
        let code = (api.GetErrorCode)(status.0);
        (api.ReleaseStatus)(status.0);
        code
    };
    Err(PolicyError::Run { code: code as i32, message })
}
