//! A camera on a MuJoCo model: MuJoCo's own renderer on OSMesa, an OpenGL in software that needs no display. Both are
//! loaded at run time.
//!
//! MuJoCo's structures are opaque here: blocks of memory larger than any of them. Only the first two numbers of a camera,
//! its kind and the index of the model's camera, are relied on.

#![allow(unsafe_code, reason = "C libraries that are loaded at run time cannot be called otherwise")]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use libloading::Library;
use libloading::os::unix::{Library as UnixLibrary, RTLD_GLOBAL, RTLD_NOW};

use crate::mujoco::{MjData, MjModel};
use crate::task::ImageSize;

const GL_RGBA: c_uint = 0x1908;
const GL_UNSIGNED_BYTE: c_uint = 0x1401;
const DEPTH_BITS: c_int = 24;
const STENCIL_BITS: c_int = 8;
/// mjFB_OFFSCREEN, mjCAMERA_FIXED, mjCAT_ALL, mjFONTSCALE_100.
const OFFSCREEN: c_int = 1;
const FIXED: c_int = 2;
const ALL: c_int = 7;
const FONT: c_int = 100;
/// Most shapes in a picture.
const SHAPES: c_int = 1000;

/// Where the picture lies in MuJoCo's frame buffer.
#[derive(Clone, Copy)]
#[repr(C)]
struct Rect([c_int; 4]);

/// Memory for a structure of MuJoCo: zeroed, aligned, and larger than the largest of them.
struct Opaque(Box<[UnsafeCell<u128>]>);

impl Opaque {
    const BYTES: usize = 1 << 20;

    fn new() -> Self {
        Self((0..Self::BYTES / 16).map(|_| UnsafeCell::new(0)).collect())
    }

    fn get(&self) -> *mut c_void {
        self.0.as_ptr().cast_mut().cast()
    }
}

/// OSMesa with a context that is current on this thread. A second one in a process, and even the end of a first one, has
/// spoilt pictures; so there is one at a time.
struct Mesa {
    context: NonNull<c_void>,
    make_current: unsafe extern "C" fn(*mut c_void, *mut c_void, c_uint, c_int, c_int) -> u8,
    destroy: unsafe extern "C" fn(*mut c_void),
    /// OpenGL's own frame buffer, which MuJoCo does not draw into.
    buffer: Opaque,
    size: ImageSize,
}

static OPEN: AtomicBool = AtomicBool::new(false);

impl Mesa {
    fn open(native: &Path, size: ImageSize) -> anyhow::Result<Self> {
        let library = find(native)?;
        ensure!(!OPEN.swap(true, Ordering::Relaxed), "a process draws with one camera at a time");
        let made = Self::new(&library, size).inspect_err(|_| OPEN.store(false, Ordering::Relaxed));
        // Its compiler has handlers for the end of the process: it is never unloaded.
        std::mem::forget(library);
        made
    }

    fn new(library: &UnixLibrary, size: ImageSize) -> anyhow::Result<Self> {
        type Create = unsafe extern "C" fn(c_uint, c_int, c_int, c_int, *mut c_void) -> *mut c_void;
        // SAFETY: the signatures are those of GL/osmesa.h, the library stays loaded, and no list is shared.
        let mesa = unsafe {
            let create = library.get::<Create>(b"OSMesaCreateContextExt")?;
            let context = create(GL_RGBA, DEPTH_BITS, STENCIL_BITS, 0, null_mut());
            Self {
                context: NonNull::new(context).context("OSMesa makes no context")?,
                make_current: *library.get(b"OSMesaMakeCurrent")?,
                destroy: *library.get(b"OSMesaDestroyContext")?,
                buffer: Opaque::new(),
                size,
            }
        };
        ensure!(mesa.enter(), "OSMesa does not take its context into use");
        Ok(mesa)
    }

    /// Takes the context into use on this thread.
    fn enter(&self) -> bool {
        let (width, height) = (c_int::from(self.size.width), c_int::from(self.size.height));
        // SAFETY: the context lives until `drop`, and the buffer holds width * height * 4 bytes (`View::open`).
        unsafe { (self.make_current)(self.context.as_ptr(), self.buffer.get(), GL_UNSIGNED_BYTE, width, height) != 0 }
    }
}

impl Drop for Mesa {
    fn drop(&mut self) {
        // SAFETY: the context is not used afterwards.
        unsafe { (self.destroy)(self.context.as_ptr()) };
        OPEN.store(false, Ordering::Relaxed);
    }
}

/// OSMesa from `native/mesa`, which also holds the libraries it needs where the system has none; or the system's.
/// MuJoCo looks its functions up among the symbols of the whole process.
fn find(native: &Path) -> anyhow::Result<UnixLibrary> {
    let open = |path: &Path| {
        // SAFETY: the files are Mesa's libraries; their initialisers only prepare themselves.
        unsafe { UnixLibrary::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
    };
    let name = Path::new("libOSMesa.so.8");
    let folder = native.join("mesa");
    let mut waiting: Vec<_> = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|f| f.path()).collect();
    // A library loads once those that it needs have been loaded.
    loop {
        let before = waiting.len();
        waiting.retain(|path| open(path).map(std::mem::forget).is_err());
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
    }
    let own = folder.join(name);
    open(if own.exists() { &own } else { name }).with_context(|| {
        format!(
            "the camera needs OSMesa, and neither {} nor the system has it; run tools/setup-native, or install \
             libosmesa6",
            folder.display()
        )
    })
}

/// MuJoCo's functions for pictures, with the signatures of mujoco.h.
struct Functions {
    update_scene: unsafe extern "C" fn(
        *const MjModel,
        *mut MjData,
        *const c_void,
        *const c_void,
        *mut c_void,
        c_int,
        *mut c_void,
    ),
    render: unsafe extern "C" fn(Rect, *mut c_void, *const c_void),
    read_pixels: unsafe extern "C" fn(*mut u8, *mut f32, Rect, *const c_void),
    free_scene: unsafe extern "C" fn(*mut c_void),
    free_context: unsafe extern "C" fn(*mut c_void),
}

/// The first camera of a model.
pub(crate) struct View {
    functions: Functions,
    camera: Opaque,
    option: Opaque,
    scene: Opaque,
    context: Opaque,
    mesa: Mesa,
}

impl View {
    /// Opens the camera.
    ///
    /// # Safety
    ///
    /// `model` is valid and from `library`, which stays loaded until the view is dropped.
    ///
    /// # Errors
    /// When OSMesa is missing, another camera is open in this process, or MuJoCo lacks a function.
    pub(crate) unsafe fn open(
        native: &Path,
        library: &Library,
        model: *const MjModel,
        size: ImageSize,
    ) -> anyhow::Result<Self> {
        type Fill = unsafe extern "C" fn(*mut c_void);
        type Make = unsafe extern "C" fn(*const MjModel, *mut c_void, c_int);
        type Set = unsafe extern "C" fn(c_int, *mut c_void);
        ensure!(4 * size.pixels() <= Opaque::BYTES, "the image is too large");
        let mesa = Mesa::open(native, size)?;
        let [camera, option, scene, context] = std::array::from_fn(|_| Opaque::new());
        // SAFETY: the signatures are those of mujoco.h, unchanged from 3.5 to 4.0; each block is large enough for its
        // structure, whose first two numbers, of a camera, are its kind and index; an OpenGL context is current.
        let functions = unsafe {
            library.get::<Fill>(c"mjv_defaultCamera")?(camera.get());
            library.get::<Fill>(c"mjv_defaultOption")?(option.get());
            library.get::<Fill>(c"mjv_defaultScene")?(scene.get());
            library.get::<Fill>(c"mjr_defaultContext")?(context.get());
            camera.get().cast::<[c_int; 2]>().write([FIXED, 0]);
            let functions = Functions {
                update_scene: *library.get(c"mjv_updateScene")?,
                render: *library.get(c"mjr_render")?,
                read_pixels: *library.get(c"mjr_readPixels")?,
                free_scene: *library.get(c"mjv_freeScene")?,
                free_context: *library.get(c"mjr_freeContext")?,
            };
            let set_buffer = library.get::<Set>(c"mjr_setBuffer")?;
            let make_scene = library.get::<Make>(c"mjv_makeScene")?;
            library.get::<Make>(c"mjr_makeContext")?(model, context.get(), FONT);
            make_scene(model, scene.get(), SHAPES);
            set_buffer(OFFSCREEN, context.get());
            functions
        };
        Ok(Self { functions, camera, option, scene, context, mesa })
    }

    /// Draws `data` into `pixels`, RGB, rows from top to bottom.
    ///
    /// # Safety
    ///
    /// `model` is the one the view was opened with, `data` is of it, and both are valid.
    pub(crate) unsafe fn draw(&self, model: *const MjModel, data: *mut MjData, pixels: &mut [u8]) {
        let ImageSize { width, height } = self.mesa.size;
        assert_eq!(pixels.len(), 3 * self.mesa.size.pixels());
        if !self.mesa.enter() {
            return pixels.fill(0);
        }
        let place = Rect([0, 0, width.into(), height.into()]);
        let (scene, context) = (self.scene.get(), self.context.get());
        // SAFETY: everything was made in `open`, an OpenGL context is current, and `pixels` has room for the picture.
        unsafe {
            (self.functions.update_scene)(model, data, self.option.get(), null(), self.camera.get(), ALL, scene);
            (self.functions.render)(place, scene, context);
            (self.functions.read_pixels)(pixels.as_mut_ptr(), null_mut(), place, context);
        }
        // OpenGL's rows come from bottom to top.
        let row = 3 * usize::from(width);
        let (top, bottom) = pixels.split_at_mut(row * (usize::from(height) / 2));
        for (top, bottom) in top.chunks_exact_mut(row).zip(bottom.chunks_exact_mut(row).rev()) {
            top.swap_with_slice(bottom);
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: both were made in `open` and are not used afterwards; the context they were made in is current.
        unsafe {
            self.mesa.enter();
            (self.functions.free_context)(self.context.get());
            (self.functions.free_scene)(self.scene.get());
        }
    }
}
