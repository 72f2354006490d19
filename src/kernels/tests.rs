//! Whether the processor's stand-in for a GPU finds faults, and that nothing escapes the warm-up.

use candle_core::{Device, Result, Tensor};

use super::queue::{Argument, Grid, LAUNCHED, Queue, launch};
use super::{Gemm, Order, on_host};

fn run(kernel: &'static str, blocks: usize, len: usize) -> Result<Vec<f32>> {
    let x = Tensor::arange(0f32, 600.0, &Device::Cpu)?;
    let out = Queue::Host.alloc(len)?;
    let arguments = [Argument::from(&x), Argument::Count(600), Argument::from(&out)];
    Queue::Host.launch(kernel, Grid::Elements(256 * blocks), &arguments)?;
    out.tensor(len).to_vec1()
}

/// The same in both orders; NaN is what nobody wrote.
fn both(kernel: &'static str, blocks: usize, len: usize) -> [Vec<u32>; 2] {
    [Order::Ascending, Order::Descending].map(|order| {
        let numbers = on_host(order, || run(kernel, blocks, len).unwrap()).unwrap();
        numbers.into_iter().map(f32::to_bits).collect()
    })
}

#[test]
fn a_missing_barrier_changes_the_result() {
    for (kernel, len) in [("broken_without_barrier", 3), ("broken_reuse", 6)] {
        let sums: Vec<f32> = (0..3).map(|b| (256 * b..600.min(256 * b + 256)).map(|v| v as f32).sum()).collect();
        let want: Vec<u32> = match len {
            3 => sums.iter().map(|v| v.to_bits()).collect(),
            _ => sums.iter().flat_map(|v| [v.to_bits(), (2.0 * v).to_bits()]).collect(),
        };
        let [up, down] = both(kernel, 3, len);
        assert!(up != want || down != want, "{kernel} went unnoticed");
    }
}

#[test]
fn a_race_depends_on_the_order() {
    let [up, down] = both("broken_race", 3, 1);
    assert_ne!(up, down);
}

#[test]
fn faults_that_a_gpu_hangs_or_lies_on_are_refused() {
    let message = |kernel, len| on_host(Order::Ascending, || run(kernel, 3, len)).unwrap().unwrap_err().to_string();
    assert!(message("broken_divergent", 3).contains("a barrier that not all threads reach"));
    assert!(message("broken_mask", 3).contains("a shuffle whose mask leaves lanes out"));
    assert!(message("broken_bounds", 600).contains("wrote past the end"));
    assert!(message("unheard_of", 1).contains("no kernel of this name"));
    // The queue is usable afterwards.
    assert!(on_host(Order::Ascending, || run("broken_race", 1, 1)).unwrap().is_ok());
}

#[test]
fn arguments_in_a_wrong_place_are_refused() {
    let x = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu).unwrap();
    let out = Queue::Host.alloc(4).unwrap();
    let (grid, queue) = (Grid::One, Queue::Host);
    assert!(launch!(queue, "ratio", grid, &x, 4usize, 0, &out).is_ok());
    assert!(launch!(queue, "ratio", grid, &x, 4f32, 0, &out).is_err());
    assert!(launch!(queue, "ratio", grid, &x, 4usize, &out).is_err());
    assert!(launch!(queue, "ratio", grid, &x, usize::MAX, 0, &out).is_err());
    assert!(launch!(queue, "ratio", grid, &x.reshape((2, 2)).unwrap().t().unwrap(), 4usize, 0, &out).is_err());
}

#[test]
fn products_are_those_of_cublas() {
    // Two products of column-major (2, 3) and (3, 1), the second operand shared; then with both transposed.
    let [a, b] = [&[1f32, 4.0, 2.0, 5.0, 3.0, 6.0, 7.0, 0.0, 8.0, 0.0, 9.0, 1.0][..], &[1.0, -1.0, 2.0]]
        .map(|v| Tensor::new(v, &Device::Cpu).unwrap());
    let product = |transpose_a, lda, transpose_b, ldb| {
        let c = Queue::Host.alloc(4).unwrap();
        let (x, y) = (Queue::Host.open(&a).unwrap(), Queue::Host.open(&b).unwrap());
        let (a, b, shape) = ((x.at(), lda, 6), (y.at(), ldb, 0), (2, 1, 3));
        Queue::Host.gemm(&Gemm { transpose_a, transpose_b, shape, a, b, c: (c.at(), 2, 2), batch: 2 }).unwrap();
        c.tensor(4).to_vec1::<f32>().unwrap()
    };
    assert_eq!(product(false, 2, false, 3), [5.0, 11.0, 17.0, 2.0]);
    assert_eq!(product(true, 3, true, 1), [1.0, 14.0, 23.0, -7.0]);
}

#[test]
fn the_warm_up_leaves_no_kernel_out() {
    let sources = [
        include_str!("cuda/critic.cu"),
        include_str!("cuda/density.cu"),
        include_str!("cuda/image.cu"),
        include_str!("cuda/optimiser.cu"),
        include_str!("cuda/policy.cu"),
        include_str!("cuda/stack.cu"),
    ];
    let name = |rest: &str| rest.split('(').next().unwrap_or_default().to_owned();
    let mut all: Vec<String> = sources.iter().flat_map(|s| s.split("\nKERNEL ").skip(1).map(name)).collect();
    LAUNCHED.take();
    on_host(Order::Ascending, || super::warm_up(&Device::Cpu)).unwrap().unwrap();
    let mut launched: Vec<String> = LAUNCHED.take().into_iter().map(String::from).collect();
    all.sort();
    launched.sort();
    launched.dedup();
    assert_eq!(launched, all);
}
