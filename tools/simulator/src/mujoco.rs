//! A thin binding to MuJoCo's C library, loaded at run time: the build needs nothing, a missing library is an error.
//!
//! With `view` the only unsafe code of this crate. State and control go through `mj_getState` and `mj_setState`, so no struct
//! layout of the library is relied on and one binary works with MuJoCo 3.5 and newer. One thread uses a
//! [`Simulation`]; several simulations may live in one process.

#![allow(unsafe_code, reason = "a C library that is loaded at run time cannot be called otherwise")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::{NonNull, null};
use std::sync::Once;

use anyhow::{Context as _, bail, ensure};
use libloading::Library;

use crate::task::ImageSize;
use crate::view::View;

// Bits of mjtState. CTRL moved from 1 << 5 to 1 << 6 in MuJoCo 3.5.
const QPOS: c_int = 1 << 1;
const QVEL: c_int = 1 << 2;
const CTRL: c_int = 1 << 6;
const OLDEST: (u32, u32) = (3, 5);

#[repr(C)]
pub(crate) struct MjModel([u8; 0]);
#[repr(C)]
pub(crate) struct MjData([u8; 0]);
#[repr(C)]
struct MjSpec([u8; 0]);

type WarningHandler = unsafe extern "C" fn(*const c_char);

/// The library's functions. The pointers stay valid as long as `library` is held.
struct Functions {
    load_xml: unsafe extern "C" fn(*const c_char, *const c_void, *mut c_char, c_int) -> *mut MjModel,
    parse_xml: unsafe extern "C" fn(*const c_char, *const c_void, *mut c_char, c_int) -> *mut MjSpec,
    compile: unsafe extern "C" fn(*mut MjSpec, *const c_void) -> *mut MjModel,
    delete_spec: unsafe extern "C" fn(*mut MjSpec),
    delete_model: unsafe extern "C" fn(*mut MjModel),
    make_data: unsafe extern "C" fn(*const MjModel) -> *mut MjData,
    delete_data: unsafe extern "C" fn(*mut MjData),
    reset_data: unsafe extern "C" fn(*const MjModel, *mut MjData),
    forward: unsafe extern "C" fn(*const MjModel, *mut MjData),
    step: unsafe extern "C" fn(*const MjModel, *mut MjData),
    state_size: unsafe extern "C" fn(*const MjModel, c_int) -> c_int,
    get_state: unsafe extern "C" fn(*const MjModel, *const MjData, *mut f64, c_int),
    set_state: unsafe extern "C" fn(*const MjModel, *mut MjData, *const f64, c_int),
    library: Library,
}

impl Functions {
    fn load(path: &Path) -> anyhow::Result<Self> {
        // SAFETY: the file is the MuJoCo library that the user named; its initialisers only fill tables.
        let library = unsafe { Library::new(path) }.with_context(|| {
            format!(
                "cannot load MuJoCo from {}; run tools/setup-native, or name the folder with --native",
                path.display()
            )
        })?;
        check_version(&library)?;
        take_over_warnings(&library)?;
        // SAFETY: every field has the signature that mujoco.h declares for the symbol, unchanged from 3.5 to 4.0,
        // and the pointers are dropped together with the library.
        let functions = unsafe {
            Self {
                load_xml: *library.get(c"mj_loadXML")?,
                parse_xml: *library.get(c"mj_parseXMLString")?,
                compile: *library.get(c"mj_compile")?,
                delete_spec: *library.get(c"mj_deleteSpec")?,
                delete_model: *library.get(c"mj_deleteModel")?,
                make_data: *library.get(c"mj_makeData")?,
                delete_data: *library.get(c"mj_deleteData")?,
                reset_data: *library.get(c"mj_resetData")?,
                forward: *library.get(c"mj_forward")?,
                step: *library.get(c"mj_step")?,
                state_size: *library.get(c"mj_stateSize")?,
                get_state: *library.get(c"mj_getState")?,
                set_state: *library.get(c"mj_setState")?,
                library,
            }
        };
        Ok(functions)
    }
}

fn check_version(library: &Library) -> anyhow::Result<()> {
    // SAFETY: `const char* mj_versionString(void)` returns a static string that ends in NUL.
    let version = unsafe {
        let version_string = library.get::<unsafe extern "C" fn() -> *const c_char>(c"mj_versionString")?;
        CStr::from_ptr(version_string()).to_string_lossy().into_owned()
    };
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
        bail!("MuJoCo calls itself version {version:?}, which is not a version number");
    };
    ensure!(
        (major, minor) >= OLDEST,
        "MuJoCo {version} is too old: 3.5 or newer is needed; tools/setup-native fetches 3.17.0"
    );
    Ok(())
}

/// MuJoCo's own handler writes a log file into the working directory; ours writes to stderr.
fn take_over_warnings(library: &Library) -> anyhow::Result<()> {
    static ONCE: Once = Once::new();
    // SAFETY: `mju_user_warning` is a variable of this type in the library, and the library stays loaded.
    let variable = unsafe { *library.get::<*mut Option<WarningHandler>>(c"mju_user_warning")? };
    // SAFETY: written once, before any call into the library that reads it: every simulation comes by here first.
    ONCE.call_once(|| unsafe { *variable = Some(on_warning) });
    Ok(())
}

unsafe extern "C" fn on_warning(text: *const c_char) {
    // SAFETY: MuJoCo passes a string that ends in NUL and lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // The gymnasium models use an attribute that MuJoCo wants to drop; their numbers are pinned, so that is no news.
    if !text.contains("deprecated") {
        // A closed stderr must not stop the simulation.
        let _ = writeln!(std::io::stderr(), "MuJoCo warns: {text}");
    }
}

/// One model with one state.
pub(crate) struct Simulation {
    /// Dropped before everything else.
    view: Option<View>,
    functions: Functions,
    model: NonNull<MjModel>,
    data: NonNull<MjData>,
    positions: usize,
    velocities: usize,
    controls: usize,
}

impl Simulation {
    /// Loads `libmujoco.so` and the model `file` from the folder `native`.
    ///
    /// # Errors
    /// When either is missing, the library is too old or the model is not valid.
    pub(crate) fn load(native: &Path, file: &str) -> anyhow::Result<Self> {
        let functions = Functions::load(&native.join("libmujoco.so"))?;
        let path = native.join(file);
        let c_path = CString::new(path.as_os_str().as_bytes())?;
        let mut reason = Reason::default();
        // SAFETY: both buffers outlive the call; a null VFS means the file system.
        let model = unsafe { (functions.load_xml)(c_path.as_ptr(), null(), reason.0.as_mut_ptr(), Reason::LEN) };
        let Some(model) = NonNull::new(model) else {
            bail!("MuJoCo refuses the model {}: {reason}; tools/setup-native fetches it", path.display());
        };
        Self::new(functions, model)
    }

    /// Loads `libmujoco.so` from the folder `native`, and a model that is given as text.
    ///
    /// # Errors
    /// When the library is missing or too old, or the model is not valid.
    pub(crate) fn parse(native: &Path, xml: &str) -> anyhow::Result<Self> {
        let functions = Functions::load(&native.join("libmujoco.so"))?;
        let xml = CString::new(xml)?;
        let mut reason = Reason::default();
        // SAFETY: both buffers outlive the call; a null VFS means the file system.
        let spec = unsafe { (functions.parse_xml)(xml.as_ptr(), null(), reason.0.as_mut_ptr(), Reason::LEN) };
        ensure!(!spec.is_null(), "MuJoCo refuses the model: {reason}");
        // SAFETY: the specification is valid, and deleted after its only use.
        let model = unsafe {
            let model = (functions.compile)(spec, null());
            (functions.delete_spec)(spec);
            model
        };
        Self::new(functions, NonNull::new(model).context("MuJoCo cannot build the model")?)
    }

    /// Takes the model over.
    fn new(functions: Functions, model: NonNull<MjModel>) -> anyhow::Result<Self> {
        // SAFETY: the model is valid until `drop`.
        let data = unsafe { (functions.make_data)(model.as_ptr()) };
        let Some(data) = NonNull::new(data) else {
            // SAFETY: the model is valid and not used afterwards.
            unsafe { (functions.delete_model)(model.as_ptr()) };
            bail!("MuJoCo has no memory for the model");
        };
        // SAFETY: the model is valid until `drop`.
        let size = |bits| unsafe { (functions.state_size)(model.as_ptr(), bits) } as usize;
        let (positions, velocities, controls) = (size(QPOS), size(QVEL), size(CTRL));
        Ok(Self { view: None, functions, model, data, positions, velocities, controls })
    }

    /// Opens the model's first camera; OSMesa comes from the folder `native`, or from the system.
    ///
    /// # Errors
    /// When OSMesa is missing, a camera of this process is open, or nothing is to be seen.
    pub(crate) fn open_view(&mut self, native: &Path, size: ImageSize) -> anyhow::Result<()> {
        // SAFETY: the model is valid, and `view` is dropped before the library and the model are.
        self.view = Some(unsafe { View::open(native, &self.functions.library, self.model.as_ptr(), size)? });
        Ok(())
    }

    /// Draws the present state into `pixels`, RGB, rows from top to bottom; nothing without a camera.
    pub(crate) fn draw(&self, pixels: &mut [u8]) {
        if let Some(view) = &self.view {
            // SAFETY: model and data are those the view was opened with, valid until `drop`.
            unsafe { view.draw(self.model.as_ptr(), self.data.as_ptr(), pixels) };
        }
    }

    /// Number of positions.
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }

    /// Number of velocities.
    pub(crate) fn velocities(&self) -> usize {
        self.velocities
    }

    /// Number of motors.
    pub(crate) fn controls(&self) -> usize {
        self.controls
    }

    /// Copies positions, then velocities, into `out`.
    pub(crate) fn read_state(&self, out: &mut [f64]) {
        assert_eq!(out.len(), self.positions + self.velocities);
        // SAFETY: model and data are valid until `drop`, and `out` has the length that these bits ask for.
        unsafe {
            (self.functions.get_state)(self.model.as_ptr(), self.data.as_ptr(), out.as_mut_ptr(), QPOS | QVEL);
        }
    }

    /// Forgets everything, warm starts included, and stands the model at `state`: positions, then velocities.
    pub(crate) fn place(&mut self, state: &[f64]) {
        assert_eq!(state.len(), self.positions + self.velocities);
        let (model, data) = (self.model.as_ptr(), self.data.as_ptr());
        // SAFETY: model and data are valid until `drop`, and `state` has the length that these bits ask for.
        unsafe {
            (self.functions.reset_data)(model, data);
            (self.functions.set_state)(model, data, state.as_ptr(), QPOS | QVEL);
            (self.functions.forward)(model, data);
        }
    }

    /// Holds the motors at `control` for `substeps` time steps of the model.
    pub(crate) fn step(&mut self, control: &[f64], substeps: usize) {
        assert_eq!(control.len(), self.controls);
        let (model, data) = (self.model.as_ptr(), self.data.as_ptr());
        // SAFETY: model and data are valid until `drop`, and `control` has the length that this bit asks for.
        unsafe {
            (self.functions.set_state)(model, data, control.as_ptr(), CTRL);
            for _ in 0..substeps {
                (self.functions.step)(model, data);
            }
        }
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.view = None;
        // SAFETY: both came from this library, are not used afterwards, and the library is dropped after this.
        unsafe {
            (self.functions.delete_data)(self.data.as_ptr());
            (self.functions.delete_model)(self.model.as_ptr());
        }
    }
}

/// What MuJoCo says of a model that it refuses.
struct Reason([c_char; 500]);

impl Reason {
    const LEN: c_int = 500;
}

impl Default for Reason {
    fn default() -> Self {
        Self([0; 500])
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: on failure MuJoCo leaves a NUL-terminated reason in the zeroed buffer, of at most its length.
        f.write_str(&unsafe { CStr::from_ptr(self.0.as_ptr()) }.to_string_lossy())
    }
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation").field("positions", &self.positions).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_says_what_to_do() {
        let problem = format!("{:#}", Simulation::load(Path::new("no/such/folder"), "hopper.xml").err().unwrap());
        assert!(problem.contains("no/such/folder/libmujoco.so") && problem.contains("setup-native"), "{problem}");
    }
}
