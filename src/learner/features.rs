//! Features of a frozen encoder, computed once for every stored image.
//!
//! A row of a minibatch names the images of its two observations by the numbers that the buffers gave them. What is
//! not known yet is copied while the replay is locked and encoded afterwards. Memory: features, 4 bytes each, for as
//! many images as the buffers have room for, taken as they come.

use candle_core::{Result as TensorResult, Tensor};

use super::LearnerError;
use crate::nn::{Eyes, Trunk};
use crate::replay::{Replay, Store};
use crate::spaces::{FrameShape, Minibatch, Source};

/// Images that are encoded as one.
const BLOCK: usize = 256;

/// An encoder and what it made of the images so far.
pub(super) struct Features {
    pub(super) trunk: Trunk,
    shape: FrameShape,
    proprioception: bool,
    sides: [Side; 2],
    /// Where the images of the minibatch's rows are: side, observation, next observation.
    rows: Vec<(usize, [usize; 2])>,
    /// Images that are not known yet: their places and their bytes.
    missing: Vec<(usize, usize)>,
    pixels: Vec<u8>,
    spare: Vec<f32>,
}

/// One buffer's images.
#[derive(Default)]
struct Side {
    /// Number of the image whose features are in a place; 0: none.
    numbers: Vec<u64>,
    /// `(places, features)`.
    features: Vec<f32>,
}

impl Features {
    pub(super) fn new(trunk: Trunk, eyes: &Eyes) -> Self {
        Self {
            trunk,
            shape: eyes.shape,
            proprioception: eyes.proprioception,
            sides: Default::default(),
            rows: Vec::new(),
            missing: Vec::new(),
            pixels: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Finds the images of minibatches and copies those that are not known; [`Features::put`] follows, without the lock.
    pub(super) fn find(&mut self, replay: &Replay, minibatches: &[&mut Minibatch]) -> Result<(), LearnerError> {
        self.rows.clear();
        self.missing.clear();
        self.pixels.clear();
        for leaf in minibatches.iter().flat_map(|minibatch| &minibatch.leaf) {
            let (source, numbers) = replay.frame_numbers(*leaf)?;
            let side = usize::from(source == Source::Online);
            let capacity = match source {
                Source::Offline => replay.offline().map_or(0, Store::capacity),
                Source::Online => replay.online().capacity(),
            };
            let places = numbers.map(|number| (number % capacity.max(1)) as usize);
            for (place, number) in places.into_iter().zip(numbers) {
                if self.sides[side].claim(place, number, self.trunk.features()) {
                    self.missing.push((side, place));
                    self.pixels.extend_from_slice(replay.frame_pixels(source, number)?);
                }
            }
            self.rows.push((side, places));
        }
        Ok(())
    }

    /// Encodes what was missing and puts features in the place of the observations.
    pub(super) fn put(&mut self, minibatches: &mut [&mut Minibatch]) -> TensorResult<()> {
        let encoded = self.encode();
        if encoded.is_err() {
            for (side, place) in &self.missing {
                self.sides[*side].numbers[*place] = 0;
            }
        }
        encoded?;
        let mut rows = self.rows.iter();
        for minibatch in minibatches {
            let own: Vec<_> = rows.by_ref().take(minibatch.rows).collect();
            let columns = [&mut minibatch.observation, &mut minibatch.next_observation];
            for (which, column) in columns.into_iter().enumerate() {
                let width = column.len() / own.len().max(1);
                self.spare.clear();
                for ((side, places), numbers) in own.iter().zip(column.chunks_exact(width.max(1))) {
                    self.spare.extend_from_slice(self.sides[*side].of(places[which], self.trunk.features()));
                    self.spare.extend(numbers.iter().filter(|_| self.proprioception));
                }
                std::mem::swap(column, &mut self.spare);
            }
        }
        Ok(())
    }

    fn encode(&mut self) -> TensorResult<()> {
        let bytes = self.shape.bytes();
        let [height, width, channels] = [self.shape.height, self.shape.width, self.shape.channels].map(usize::from);
        let device = self.trunk.vars()[0].device().clone();
        for (places, pixels) in self.missing.chunks(BLOCK).zip(self.pixels.chunks(BLOCK * bytes)) {
            let images = Tensor::from_slice(pixels, (places.len(), height, width, channels), &device)?;
            let features = self.trunk.forward_detached(&images, None)?.flatten_all()?.to_vec1::<f32>()?;
            for ((side, place), features) in places.iter().zip(features.chunks_exact(self.trunk.features())) {
                let start = place * features.len();
                self.sides[*side].features[start..start + features.len()].copy_from_slice(features);
            }
        }
        Ok(())
    }
}

impl Side {
    /// Takes the place for image `number`; whether its features have yet to be computed.
    fn claim(&mut self, place: usize, number: u64, width: usize) -> bool {
        if self.numbers.len() <= place {
            self.numbers.resize(place + 1, 0);
            self.features.resize((place + 1) * width, 0.0);
        }
        std::mem::replace(&mut self.numbers[place], number) != number
    }

    fn of(&self, place: usize, width: usize) -> &[f32] {
        &self.features[place * width..][..width]
    }
}
