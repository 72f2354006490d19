//! The kernels compiled for the processor (tests).
#![allow(unsafe_code, reason = "calls into C++")]

use std::ffi::{CStr, CString, c_char, c_void};

use candle_core::{Error, Result, bail};

use super::queue::{Gemm, Passed};
use super::{ON_HOST, Order};

unsafe extern "C" {
    fn fieldtune_launch(
        kernel: *const c_char,
        kinds: *const c_char,
        x: u32,
        y: u32,
        arguments: *mut *mut c_void,
        reversed: bool,
    ) -> *const c_char;
}

/// Runs a kernel on memory of the processor.
pub(super) fn launch(kernel: &str, (x, y): (u32, u32), arguments: &[Passed]) -> Result<()> {
    let kinds = arguments.iter().map(|argument| match argument {
        Passed::Address(_) => 'p',
        Passed::Integer(_) => 'i',
        Passed::Number(_) => 'f',
    });
    let text = |s: String| CString::new(s).map_err(Error::wrap);
    let (name, kinds) = (text(kernel.into())?, text(kinds.collect())?);
    let mut pointers: Vec<*mut c_void> = arguments
        .iter()
        .map(|argument| match argument {
            Passed::Address(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Passed::Integer(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Passed::Number(value) => std::ptr::from_ref(value).cast_mut().cast(),
        })
        .collect();
    let reversed = ON_HOST.get() == Some(Order::Descending);
    // SAFETY: the C++ side compares number and kinds of the arguments with the kernel's own before it reads them, and
    // reads them only; each points to a value of its kind that outlives the call. What the kernel does with addresses
    // is the contract of `Queue::launch`: storages that the caller holds, as long as its counts say.
    let failure = unsafe { fieldtune_launch(name.as_ptr(), kinds.as_ptr(), x, y, pointers.as_mut_ptr(), reversed) };
    if failure.is_null() {
        return Ok(());
    }
    // SAFETY: a failure is a string literal of the C++ side.
    let why = unsafe { CStr::from_ptr(failure) }.to_string_lossy();
    bail!("kernel {kernel}: {why}")
}

/// What cuBLAS does with `product`, on memory of the processor and in the plainest way.
pub(super) fn gemm(product: &Gemm) -> Result<()> {
    let Gemm { transpose_a, transpose_b, shape: (m, n, k), a, b, c, batch } = *product;
    let height = |transpose: bool, rows: usize, columns: usize| if transpose { columns } else { rows };
    // cuBLAS refuses these as well.
    if a.1 < height(transpose_a, m, k) || b.1 < height(transpose_b, k, n) || c.1 < m {
        bail!("a leading dimension is less than its matrix is high: {product:?}");
    }
    let load = |(start, leading, stride): (u64, usize, usize), entry: usize, row: usize, column: usize| {
        // SAFETY: the contract of `Queue::gemm`: the three matrices lie in storages that the caller holds.
        unsafe { *(start as *const f32).add(entry * stride + column * leading + row) }
    };
    for entry in 0..batch {
        for column in 0..n {
            for row in 0..m {
                let sum: f32 = (0..k)
                    .map(|i| {
                        let (x, y) = if transpose_a { (i, row) } else { (row, i) };
                        let (u, w) = if transpose_b { (column, i) } else { (i, column) };
                        load(a, entry, x, y) * load(b, entry, u, w)
                    })
                    .sum();
                // SAFETY: as above; `C` is memory that the caller just allocated and nobody else reads yet.
                unsafe { *(c.0 as *mut f32).add(entry * c.2 + column * c.1 + row) = sum };
            }
        }
    }
    Ok(())
}
