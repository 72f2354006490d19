//! The way of camera frames to the control thread: shares of frames whose memory the camera thread keeps.

use std::sync::Arc;

use heapless::spsc::{Consumer, Producer, Queue};

use crate::spaces::Frame;

/// Frames the queue holds (one less than its slots). When it is full, the newest frame is dropped and counted.
const SLOTS: usize = 8;

/// The camera thread's end. It keeps a share of every frame it sends, so that no share that is dropped on the control
/// thread is the last.
pub struct FrameProducer(Producer<'static, Arc<Frame>>);

/// The control thread's end.
pub struct FrameConsumer {
    frames: Consumer<'static, Arc<Frame>>,
    newest: Option<Arc<Frame>>,
}

/// A new queue. Its memory is kept until the process ends, so that neither end can outlive it.
pub fn frame_queue() -> (FrameProducer, FrameConsumer) {
    let queue: &'static mut Queue<Arc<Frame>, SLOTS> = Box::leak(Box::new(Queue::new()));
    let (producer, frames) = queue.split();
    (FrameProducer(producer), FrameConsumer { frames, newest: None })
}

impl FrameProducer {
    /// Puts a frame in; `false` when the queue is full. Never waits.
    pub fn push(&mut self, frame: Arc<Frame>) -> bool {
        self.0.enqueue(frame).is_ok()
    }
}

impl FrameConsumer {
    /// Takes what came, so that the queue never fills while nobody looks. Real time.
    pub fn follow(&mut self) {
        while let Some(frame) = self.frames.dequeue() {
            self.newest = Some(frame);
        }
    }

    /// The newest frame that was taken. Real time.
    pub fn newest(&self) -> Option<&Arc<Frame>> {
        self.newest.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_kept_and_a_full_queue_refuses() {
        let (mut producer, mut consumer) = frame_queue();
        consumer.follow();
        assert!(consumer.newest().is_none());
        let frame = |sequence| Arc::new(Frame { sequence, ..Frame::default() });
        for sequence in 1..SLOTS as u64 {
            assert!(producer.push(frame(sequence)));
        }
        assert!(!producer.push(frame(99)));
        for _ in 0..2 {
            consumer.follow();
            assert_eq!(consumer.newest().map(|frame| frame.sequence), Some(SLOTS as u64 - 1));
        }
        assert!(producer.push(frame(100)));
        consumer.follow();
        assert_eq!(consumer.newest().map(|frame| frame.sequence), Some(100));
    }
}
