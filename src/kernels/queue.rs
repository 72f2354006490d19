//! Where kernels run: a GPU's stream, or the processor in tests.
#![allow(unsafe_code, reason = "kernels take addresses")]

use std::cell::Cell;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};

#[cfg(feature = "cuda")]
use super::device::{Buffer, Gpu};

/// Threads of every block, as in `common.cuh`.
const THREADS: usize = 256;
/// Most blocks of a one-dimensional grid: enough to fill a GPU, few enough that each has several elements.
const BLOCKS: usize = 2048;

/// Numbers behind every memory of the processor, and their bits.
const GUARD: usize = 8;
const GUARD_BITS: u32 = 0x7fc0_5afe;

thread_local! {
    /// Kernels and matrix products that this thread has launched.
    static LAUNCHES: Cell<u64> = const { Cell::new(0) };
}

#[cfg(test)]
thread_local! {
    /// Names of the kernels that this thread has launched.
    pub(super) static LAUNCHED: std::cell::RefCell<Vec<&'static str>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Kernels and matrix products of this module that this thread has launched; candle's own are not in it.
pub fn launches() -> u64 {
    LAUNCHES.get()
}

/// Everything that is sent to it runs in order.
#[derive(Clone)]
pub(crate) enum Queue {
    Host,
    #[cfg(feature = "cuda")]
    Cuda(Gpu),
}

/// Numbers that a kernel writes; their contents are undefined until then (NaN on the processor).
pub(crate) enum Memory {
    /// Longer than asked for by [`GUARD`], which no kernel may touch.
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Cuda(Buffer),
}

/// How many threads a kernel gets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grid {
    /// One block: the kernel adds everything up.
    One,
    /// About a thread for each of so many elements.
    Elements(usize),
    /// About a warp for each of so many rows.
    Rows(usize),
    /// A block for 32 columns of each member.
    Columns { width: usize, members: usize },
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// A contiguous tensor that is read; none is a null pointer.
    Tensor(Option<&'a Tensor>),
    /// Memory that is written.
    Memory(&'a Memory),
    /// Memory that the caller has opened for writing.
    At(u64),
    Count(usize),
    Code(i32),
    Number(f32),
}

/// [`Argument`] of what it is made of.
macro_rules! argument {
    ($($variant:ident($from:ty, $make:expr)),* $(,)?) => {$(
        impl<'a> From<$from> for Argument<'a> {
            fn from(value: $from) -> Self {
                Self::$variant($make(value))
            }
        }
    )*};
}
argument! {
    Tensor(&'a Tensor, Some),
    Tensor(Option<&'a Tensor>, std::convert::identity),
    Memory(&'a Memory, std::convert::identity),
    At(u64, std::convert::identity),
    Count(usize, std::convert::identity),
    Code(i32, std::convert::identity),
    Number(f32, std::convert::identity),
    Number(f64, |value| value as f32),
}

/// Sends a kernel to a queue: name, grid, arguments in the kernel's order.
macro_rules! launch {
    ($queue:expr, $kernel:literal, $grid:expr, $($argument:expr),+ $(,)?) => {
        $queue.launch($kernel, $grid, &[$($crate::kernels::Argument::from($argument)),+])
    };
}
pub(crate) use launch;

/// An argument as the kernel gets it.
#[cfg_attr(not(any(feature = "cuda", host_kernels)), allow(dead_code, reason = "nothing here can read it"))]
#[derive(Clone, Copy, Debug)]
pub(super) enum Passed {
    Address(u64),
    Integer(i32),
    Number(f32),
}

/// A contiguous tensor whose storage stays readable while this lives.
pub(crate) struct Reading<'a> {
    _storage: StorageRef<'a>,
    address: u64,
}

impl Reading<'_> {
    /// Where it starts.
    pub(crate) fn at(&self) -> u64 {
        self.address
    }
}

/// One batched matrix product `C_i = op(A_i) op(B_i)` in the terms of cuBLAS: matrices are column-major, `lda` is
/// the distance of columns, `stride_a` that of batch entries, all in numbers.
#[cfg_attr(not(any(feature = "cuda", host_kernels)), allow(dead_code, reason = "nothing here can read it"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    /// Whether `A` is transposed first.
    pub(crate) transpose_a: bool,
    /// Whether `B` is.
    pub(crate) transpose_b: bool,
    /// Rows and columns of `C`, and the common width.
    pub(crate) shape: (usize, usize, usize),
    /// Address, `lda` and stride.
    pub(crate) a: (u64, usize, usize),
    /// The same of `B`.
    pub(crate) b: (u64, usize, usize),
    /// The same of `C`.
    pub(crate) c: (u64, usize, usize),
    /// Batch entries.
    pub(crate) batch: usize,
}

impl Queue {
    /// That of a device.
    pub(crate) fn of(device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Host),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Self::Cuda(Gpu::of(device))),
            _ => bail!("no kernels for this device"),
        }
    }

    /// Memory for `len` numbers.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "only a GPU can refuse"))]
    pub(crate) fn alloc(&self, len: usize) -> Result<Memory> {
        match self {
            Self::Host => {
                let mut numbers = vec![f32::NAN; len];
                numbers.resize(len + GUARD, f32::from_bits(GUARD_BITS));
                Ok(Memory::Host(numbers))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => Ok(Memory::Cuda(gpu.alloc(len)?)),
        }
    }

    /// Sends a kernel. Tensors and memory must be as long as the counts say.
    ///
    /// On a GPU it runs later, but memory is freed in the order of the queue as well.
    ///
    /// # Errors
    /// When a tensor is not contiguous or lies elsewhere, a count has more than 32 bits, or the device refuses.
    pub(crate) fn launch(&self, kernel: &'static str, grid: Grid, arguments: &[Argument<'_>]) -> Result<()> {
        let mut open = Vec::with_capacity(arguments.len());
        let passed = arguments.iter().map(|argument| self.pass(argument, &mut open)).collect::<Result<Vec<_>>>()?;
        let blocks = match grid {
            Grid::One => (1, 1),
            Grid::Elements(n) => (n.div_ceil(THREADS).clamp(1, BLOCKS) as u32, 1),
            Grid::Rows(n) => (n.div_ceil(THREADS / 32).clamp(1, BLOCKS) as u32, 1),
            Grid::Columns { width, members } => (width.div_ceil(32) as u32, members as u32),
        };
        LAUNCHES.set(LAUNCHES.get() + 1);
        #[cfg(test)]
        LAUNCHED.with_borrow_mut(|names| names.push(kernel));
        match self {
            Self::Host => {
                on_host(kernel, blocks, &passed)?;
                let spoilt = |a: &Argument<'_>| matches!(a, Argument::Memory(memory) if !memory.guarded());
                if arguments.iter().any(spoilt) {
                    bail!("kernel {kernel} wrote past the end of its memory");
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.launch(kernel, blocks, THREADS as u32, &passed),
        }
    }

    /// A tensor stays open, in `open`, until the kernel is on its way.
    fn pass<'a>(&self, argument: &Argument<'a>, open: &mut Vec<Reading<'a>>) -> Result<Passed> {
        Ok(match *argument {
            Argument::Tensor(None) => Passed::Address(0),
            Argument::Tensor(Some(tensor)) => {
                open.push(self.open(tensor)?);
                Passed::Address(open.last().map_or(0, Reading::at))
            }
            Argument::Memory(memory) => Passed::Address(memory.at()),
            Argument::At(address) => Passed::Address(address),
            Argument::Count(count) => match i32::try_from(count) {
                Ok(count) => Passed::Integer(count),
                Err(_) => bail!("{count} is more than a kernel can count"),
            },
            Argument::Code(code) => Passed::Integer(code),
            Argument::Number(value) => Passed::Number(value),
        })
    }

    /// Opens a contiguous tensor of this device for reading.
    ///
    /// # Errors
    /// When it is not contiguous or lies elsewhere.
    pub(crate) fn open<'a>(&self, tensor: &'a Tensor) -> Result<Reading<'a>> {
        let (storage, layout) = tensor.storage_and_layout();
        let address = self.address(&storage, layout)?;
        Ok(Reading { _storage: storage, address })
    }

    fn address(&self, storage: &Storage, layout: &Layout) -> Result<u64> {
        let Some((start, _)) = layout.contiguous_offsets() else { bail!("a kernel needs a contiguous tensor") };
        match (self, storage) {
            (Self::Host, Storage::Cpu(CpuStorage::F32(v))) => Ok(v[start..].as_ptr() as u64),
            (Self::Host, Storage::Cpu(CpuStorage::U32(v))) => Ok(v[start..].as_ptr() as u64),
            (Self::Host, Storage::Cpu(CpuStorage::I32(v))) => Ok(v[start..].as_ptr() as u64),
            (Self::Host, Storage::Cpu(CpuStorage::U8(v))) => Ok(v[start..].as_ptr() as u64),
            #[cfg(feature = "cuda")]
            (Self::Cuda(gpu), Storage::Cuda(storage)) => gpu.address(storage, start),
            _ => bail!("a kernel works on f32, u32, i32 or u8 tensors of one device"),
        }
    }

    /// Sends a batched matrix product; its addresses must be valid as a kernel's.
    pub(crate) fn gemm(&self, product: &Gemm) -> Result<()> {
        LAUNCHES.set(LAUNCHES.get() + 1);
        match self {
            Self::Host => on_host_gemm(product),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.gemm(product),
        }
    }
}

#[cfg(host_kernels)]
fn on_host(kernel: &'static str, blocks: (u32, u32), arguments: &[Passed]) -> Result<()> {
    super::host::launch(kernel, blocks, arguments)
}

#[cfg(host_kernels)]
fn on_host_gemm(product: &Gemm) -> Result<()> {
    super::host::gemm(product)
}

#[cfg(not(host_kernels))]
fn on_host(kernel: &'static str, _: (u32, u32), _: &[Passed]) -> Result<()> {
    bail!("kernel {kernel} on the processor needs the feature `host-kernels`")
}

#[cfg(not(host_kernels))]
fn on_host_gemm(_: &Gemm) -> Result<()> {
    bail!("matrix products of kernels on the processor need the feature `host-kernels`")
}

impl Memory {
    /// Where it starts.
    pub(crate) fn at(&self) -> u64 {
        match self {
            Self::Host(numbers) => numbers.as_ptr() as u64,
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => buffer.at(),
        }
    }

    /// Whether nobody wrote behind the end; unknown on a GPU.
    fn guarded(&self) -> bool {
        match self {
            Self::Host(numbers) => numbers[numbers.len() - GUARD..].iter().all(|v| v.to_bits() == GUARD_BITS),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => true,
        }
    }

    /// As a storage of candle.
    pub(super) fn storage(self) -> Storage {
        match self {
            Self::Host(mut numbers) => {
                numbers.truncate(numbers.len() - GUARD);
                Storage::Cpu(CpuStorage::F32(numbers))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => Storage::Cuda(buffer.storage()),
        }
    }

    /// As a tensor without gradient; its length must be that of the shape.
    pub(crate) fn tensor(self, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(self.storage(), shape, BackpropOp::none(), false)
    }
}
