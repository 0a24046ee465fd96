import { join } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import {
  callNative,
  callNativeAsync,
  Device,
  memoryUsage,
  TrainingRun as NativeTrainingRun,
  withCancellation,
} from '@llamavid/native';
import { closeBatch, type LoadedBatch, loadBatch, type MediaReading } from './batch-loader.js';
import { EventFile } from './event-file.js';
import { MetricsLog } from './metrics-log.js';
import type { RecordFailure, StepReport } from './step-report.js';
import { type ResolvedOptions, resolveOptions, type TrainOptions } from './train-options.js';
import { writeTrainingReport } from './training-report.js';
import { TrainingRun, type TrainingSummary } from './training-run.js';
import { writing } from './written-file.js';

/**
 * Trains one stage.
 *
 * Options are checked here; files are read when the run is iterated or its `result()` is asked for.
 */
export function train(options: TrainOptions): TrainingRun {
  const { failureLimit = 0.1 } = options;
  if (!(failureLimit >= 0 && failureLimit <= 1)) {
    throw new LlamaVidError('INVALID_ARGUMENT', `failureLimit is ${failureLimit}`, {
      hint: 'Give the share of records that may fail, from 0 to 1.',
    });
  }
  if (typeof options.output !== 'string' || options.output === '') {
    throw new LlamaVidError('INVALID_ARGUMENT', 'output is missing', {
      hint: 'Name the folder to write to.',
    });
  }
  return new TrainingRun(run(resolveOptions(options), { ...options, failureLimit }));
}

async function* run(
  { recipe, inputs }: ResolvedOptions,
  options: TrainOptions & { failureLimit: number },
): AsyncGenerator<StepReport, TrainingSummary, void> {
  const { output, resume = false, signal } = options;
  const native = await withCancellation(signal, (cancellation) => {
    using device = Device.open(options.device ?? 'auto');
    return NativeTrainingRun.open(JSON.stringify({ recipe, inputs, output, resume }), device, cancellation);
  });
  // Stops reading ahead when the run ends early; the caller's own signal lets the step finish.
  const reading = new AbortController();
  let ahead: Promise<LoadedBatch | undefined> | undefined;
  try {
    const { steps, doneSteps, finished } = callNative(() => native.facts);
    const media: MediaReading = { preprocessing: callNative(() => native.preprocessing), data: recipe.data };
    using metrics = new MetricsLog(join(output, 'metrics.jsonl'), doneSteps);
    const reports = metrics.earlier;
    if (!finished) {
      using events = new EventFile(output, doneSteps + 1);
      const pace = new Pace();
      const next = async () => {
        const batch = await callNativeAsync(() => native.nextBatch());
        return batch === null ? undefined : await loadBatch(batch, media, reading.signal);
      };
      let stepFailures: RecordFailure[] = [];
      ahead = next();
      for (;;) {
        const waiting = performance.now();
        const loaded = await ahead;
        pace.waited(performance.now() - waiting);
        if (loaded === undefined) break;
        ahead = next();
        // Its failure is met when the batch is asked for.
        ahead.catch(() => {});
        stepFailures.push(...loaded.failures);
        let result: Awaited<ReturnType<NativeTrainingRun['step']>>;
        try {
          result = await callNativeAsync(() => native.step(loaded.batch.number, loaded.pixels));
        } finally {
          closeBatch(loaded);
        }
        if (result === null) continue;

        const { loss = null, gradientNorm = null, ...done } = result;
        const report: StepReport = {
          ...{
            step: done.step,
            steps,
            epoch: done.epoch,
            loss,
            learningRate: done.learningRate,
            gradientNorm,
          },
          ...{ samples: done.samples, tokens: done.tokens, frames: done.frames },
          ...pace.step(done, steps - done.step),
          ...memoryUsage(),
          failures: stepFailures,
        };
        stepFailures = [];
        reports.push(report);
        const last = report.step === steps;
        const stopping = signal?.aborted === true && !last;
        // Before the checkpoint: a run that goes on from it has the line of each of its steps.
        metrics.append(report);
        events.write(report.step, scalars(report));
        if (stopping || (report.step % recipe.checkpoints.everySteps === 0 && !last)) {
          report.checkpoint = await callNativeAsync(() => native.save());
        }
        yield report;
        if (stopping) throw stopped(report, signal);
        checkFailures(reports, options.failureLimit);
      }
      if (reports.every(({ samples }) => samples === 0)) throw nothingRead(reports);
      await callNativeAsync(() => native.finish());
    }
    writing(output, () =>
      writeTrainingReport(output, { title: recipe.title, facts: facts(recipe) }, reports),
    );
    return summarize(output, reports);
  } finally {
    reading.abort();
    const left = await ahead?.catch(() => undefined);
    if (left !== undefined) closeBatch(left);
    await callNativeAsync(() => native.close());
  }
}

function stopped({ step, steps, checkpoint }: StepReport, signal: AbortSignal | undefined): LlamaVidError {
  return new LlamaVidError('ABORTED', `training stopped behind step ${step} of ${steps}`, {
    hint: `It can go on from ${checkpoint}: resume the run.`,
    cause: signal?.reason,
  });
}

/** Failures below this number stop no run: small lists have no meaningful share. */
const FEW_FAILURES = 10;

function checkFailures(reports: readonly StepReport[], limit: number): void {
  const failures = reports.reduce((total, report) => total + report.failures.length, 0);
  if (failures <= FEW_FAILURES) return;
  const records = reports.reduce((total, report) => total + report.samples, failures);
  if (failures <= limit * records) return;
  const last = reports.at(-1)?.failures.at(-1);
  throw new LlamaVidError(
    'DATA_INVALID',
    `${failures} of ${records} records failed, the last one ${last?.id ?? ''}: ${last?.reason ?? ''}`,
    { hint: '`llamavid data check` names all bad records of a list; metrics.jsonl those of this run.' },
  );
}

function nothingRead(reports: readonly StepReport[]): LlamaVidError {
  const first = reports[0]?.failures[0];
  const why = first === undefined ? 'the list is empty' : `the first one, ${first.id}: ${first.reason}`;
  return new LlamaVidError('DATA_INVALID', `no record could be trained on; ${why}`, {
    hint: '`llamavid data check` names all bad records of a list.',
  });
}

function scalars(report: StepReport): Record<string, number> {
  const { loss, gradientNorm, learningRate, epoch, tokensPerSecond, framesPerSecond, peakRssBytes } = report;
  return {
    ...(loss !== null && { 'train/loss': loss }),
    ...(gradientNorm !== null && { 'train/gradient_norm': gradientNorm }),
    'train/learning_rate': learningRate,
    'train/epoch': epoch,
    'train/failed_records': report.failures.length,
    'speed/tokens_per_second': tokensPerSecond,
    'speed/frames_per_second': framesPerSecond,
    'memory/peak_rss_bytes': peakRssBytes,
  };
}

function facts({ name, stage, batch, optimizer, seed, lora }: ResolvedOptions['recipe']): [string, string][] {
  return [
    ['recipe', name],
    ['stage', String(stage)],
    ['records a step', `${batch.perDevice} × ${batch.accumulation} × ${batch.devices}`],
    ['optimizer', `${optimizer.kind}, rate ${optimizer.learningRate}, ${optimizer.schedule}`],
    ...(lora ? ([['LoRA', `rank ${lora.rank}, alpha ${lora.alpha}`]] as [string, string][]) : []),
    ['seed', String(seed)],
  ];
}

function summarize(output: string, reports: readonly StepReport[]): TrainingSummary {
  const sum = (of: (report: StepReport) => number) =>
    reports.reduce((total, report) => total + of(report), 0);
  const seconds = sum((report) => report.seconds);
  const tokens = sum((report) => report.tokens);
  const frames = sum((report) => report.frames);
  return {
    output,
    steps: reports.length,
    loss: reports.findLast(({ loss }) => loss !== null)?.loss ?? null,
    samples: sum((report) => report.samples),
    tokens,
    frames,
    seconds,
    tokensPerSecond: seconds > 0 ? tokens / seconds : 0,
    framesPerSecond: seconds > 0 ? frames / seconds : 0,
    peakRssBytes: process.resourceUsage().maxRSS * 1024,
    failures: reports.flatMap((report) => report.failures),
  };
}

/** Measures steps. */
class Pace {
  #began = performance.now();
  #waitedMs = 0;
  /** Mean seconds of the last steps, for the time that is left. */
  #mean: number | undefined;

  waited(milliseconds: number): void {
    this.#waitedMs += milliseconds;
  }

  step(
    { tokens, frames }: { tokens: number; frames: number },
    stepsLeft: number,
  ): Pick<
    StepReport,
    'seconds' | 'dataSeconds' | 'tokensPerSecond' | 'framesPerSecond' | 'remainingSeconds'
  > {
    const now = performance.now();
    const seconds = (now - this.#began) / 1000;
    const dataSeconds = this.#waitedMs / 1000;
    this.#began = now;
    this.#waitedMs = 0;
    this.#mean = this.#mean === undefined ? seconds : this.#mean * 0.9 + seconds * 0.1;
    return {
      seconds,
      dataSeconds,
      tokensPerSecond: seconds > 0 ? tokens / seconds : 0,
      framesPerSecond: seconds > 0 ? frames / seconds : 0,
      remainingSeconds: this.#mean * stepsLeft,
    };
  }
}
