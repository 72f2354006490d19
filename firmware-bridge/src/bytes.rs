//! Little-endian cursors that cannot run over an edge.

use heapless::Vec;

/// Reads numbers off the front of a slice; `None` when it is too short.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn f32(&mut self) -> Option<f32> {
        self.take().map(f32::from_le_bytes)
    }

    /// `None` as well when there are more values than `N`.
    pub(crate) fn values<const N: usize>(&mut self, count: u8) -> Option<Vec<f32, N>> {
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(self.f32()?).ok()?;
        }
        Some(values)
    }

    /// `Some` only when the two bytes in front are zero.
    pub(crate) fn reserved(&mut self) -> Option<()> {
        (self.u16()? == 0).then_some(())
    }

    /// `Some` only when everything has been read.
    pub(crate) fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Writes numbers to a slice; `None` when it is full.
pub(crate) struct Writer<'a> {
    out: &'a mut [u8],
    written: usize,
}

impl<'a> Writer<'a> {
    pub(crate) const fn new(out: &'a mut [u8]) -> Self {
        Self { out, written: 0 }
    }

    pub(crate) const fn written(&self) -> usize {
        self.written
    }

    pub(crate) fn put<const N: usize>(&mut self, bytes: [u8; N]) -> Option<()> {
        *self.out.get_mut(self.written..)?.first_chunk_mut()? = bytes;
        self.written += N;
        Some(())
    }

    pub(crate) fn u8(&mut self, value: u8) -> Option<()> {
        self.put([value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> Option<()> {
        self.put(value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> Option<()> {
        self.put(value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> Option<()> {
        self.put(value.to_le_bytes())
    }

    pub(crate) fn values(&mut self, values: &[f32]) -> Option<()> {
        values.iter().try_for_each(|value| self.put(value.to_le_bytes()))
    }
}
