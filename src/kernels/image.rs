//! Camera images as an encoder wants them.

use candle_core::{DType, Result, Tensor, bail};

use super::queue::{Grid, Queue, launch};

/// `byte / 255` as `(batch, channels, height, width)` of images `(batch, height, width, channels)` of bytes.
///
/// With `shift`, `(batch, 2)` of `i32`, each image is read that many rows and columns further; outside it its border
/// repeats (random shifts of DrQ).
///
/// # Errors
/// When shapes or types do not fit.
pub fn normalise_images(bytes: &Tensor, shift: Option<&Tensor>) -> Result<Tensor> {
    let (batch, height, width, channels) = bytes.dims4()?;
    if bytes.dtype() != DType::U8 {
        bail!("images of {:?}, want bytes", bytes.dtype());
    }
    if let Some(shift) = shift
        && (shift.dims() != [batch, 2] || shift.dtype() != DType::I32)
    {
        bail!("shifts {:?} of {:?} for {batch} images, want ({batch}, 2) of i32", shift.dims(), shift.dtype());
    }
    let (bytes, shift) = (bytes.contiguous()?, shift.map(Tensor::contiguous).transpose()?);
    let (queue, n) = (Queue::of(bytes.device())?, bytes.elem_count());
    let out = queue.alloc(n)?;
    let (grid, shift) = (Grid::Elements(n), shift.as_ref());
    launch!(queue, "normalise_images", grid, &bytes, shift, batch, height, width, channels, &out)?;
    Ok(out.tensor((batch, channels, height, width)))
}
