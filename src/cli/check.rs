//! `fieldtune check`.

use std::path::PathBuf;

use candle_core::Device;
use fieldtune::golden::{self, CaseReport};

/// Check this build against numbers from elsewhere.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Run a folder of golden files through the learner's losses, policies, optimiser and encoder.
    ///
    /// One line per quantity: largest absolute and relative error, and the error in terms of what is allowed (1e-5
    /// relative on the processor, 1e-4 on a GPU, a tenth of it absolutely). The exit code is 0 only when all files were
    /// understood and agree.
    Golden(GoldenArgs),
}

#[derive(clap::Args)]
pub(super) struct GoldenArgs {
    /// Folder with golden files (*.safetensors).
    dir: PathBuf,
    /// Print the reports as JSON.
    #[arg(long)]
    json: bool,
    /// Use the GPU; needs a build with the cuda feature.
    #[arg(long)]
    cuda: bool,
}

pub(super) fn run(command: &Command) -> anyhow::Result<bool> {
    let Command::Golden(args) = command;
    let device = if args.cuda { fieldtune::kernels::open()? } else { Device::Cpu };
    let reports = golden::check_folder(&args.dir, &device)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        table(&reports);
    }
    Ok(reports.iter().all(CaseReport::passed))
}

fn table(reports: &[CaseReport]) {
    let word = |passed: bool| if passed { "pass" } else { "FAIL" };
    let width = reports.iter().map(|r| r.file.len()).max().unwrap_or(0);
    for report in reports {
        for q in &report.quantities {
            say!(
                "{}  {:width$}  {:28}  absolute {:.1e}  relative {:.1e}  tolerance {:.0e}, {:.3} of it",
                word(q.passed),
                report.file,
                q.name,
                q.max_absolute,
                q.max_relative,
                report.tolerance,
                q.of_tolerance
            );
        }
        if let Some(failure) = &report.failure {
            say!("FAIL  {:width$}  {failure}", report.file);
        }
    }
    let failed = reports.iter().filter(|r| !r.passed()).count();
    let quantities: usize = reports.iter().map(|r| r.quantities.len()).sum();
    let worst = reports.iter().flat_map(|r| &r.quantities).map(|q| q.of_tolerance).fold(0.0, f64::max);
    say!("{} files, {quantities} quantities, {failed} files failed, worst {worst:.3} of the tolerance", reports.len());
}
