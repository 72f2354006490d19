//! The way of step records from the control thread to the recorder: fixed size, no lock, no heap.

use heapless::spsc::{Consumer, Producer, Queue};

use crate::spaces::StepRecord;

/// Steps the queue holds (one less than its slots): two seconds at 500 Hz. When it is full, the newest record
/// is dropped and counted, and the next one that fits carries the gap flag.
pub const QUEUE_STEPS: usize = 1023;

const SLOTS: usize = QUEUE_STEPS + 1;

/// The control thread's end.
pub struct StepProducer(Producer<'static, StepRecord>);

/// The recorder's end.
pub struct StepConsumer(Consumer<'static, StepRecord>);

/// A new queue. Its memory (about half a megabyte) is kept until the process ends, so that neither end can
/// outlive it.
pub fn step_queue() -> (StepProducer, StepConsumer) {
    let queue: &'static mut Queue<StepRecord, SLOTS> = Box::leak(Box::new(Queue::new()));
    let (producer, consumer) = queue.split();
    (StepProducer(producer), StepConsumer(consumer))
}

impl StepProducer {
    /// Puts a record in; `false` when the queue is full. Never waits.
    pub fn push(&mut self, record: StepRecord) -> bool {
        self.0.enqueue(record).is_ok()
    }
}

impl StepConsumer {
    /// Takes the oldest record.
    pub fn pop(&mut self) -> Option<StepRecord> {
        self.0.dequeue()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_and_keeps_what_it_has() {
        let (mut producer, mut consumer) = step_queue();
        for step in 0..QUEUE_STEPS as u32 {
            assert!(producer.push(StepRecord { step, ..StepRecord::default() }));
        }
        assert!(!producer.push(StepRecord::default()));
        for step in 0..QUEUE_STEPS as u32 {
            assert_eq!(consumer.pop().map(|r| r.step), Some(step));
        }
        assert!(consumer.pop().is_none());
    }
}
