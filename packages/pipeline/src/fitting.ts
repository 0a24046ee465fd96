import { LlamaVidError } from '@llamavid/errors';
import type { RunPlan, WeightFormat } from './run-plan.js';

/** Throws `OUT_OF_MEMORY` for a run that cannot fit, with its numbers and the nearest setting that does. */
export function refuseWhatCannotFit(plan: RunPlan): void {
  const setting = plan.options[plan.chosen];
  if (setting === undefined || setting.fits !== false || plan.memory === null) return;
  const { available, total, limit } = plan.memory;
  const { weights, features, kvCache, needed } = setting;
  const weightBytes = weights.visualEncoder + weights.tokenGenerator + weights.languageModel;
  const where = { machine: 'of this machine', cgroup: "of this process's control group", gpu: 'of the GPU' };
  throw new LlamaVidError(
    'OUT_OF_MEMORY',
    `${bytesText(needed)} are needed with ${formatText(setting)} (weights ${bytesText(weightBytes)}, features of ` +
      `${plan.frames} frames ${bytesText(features)}, key/value cache of ${plan.promptTokens + plan.maxNewTokens} tokens ` +
      `${bytesText(kvCache)}), and ${bytesText(available)} of ${bytesText(total)} ${where[limit]} are free`,
    { hint: `${nearestText(plan)} To run anyway, set tryAnyway (--try-anyway).` },
  );
}

/** How many answers like the planned one memory has room for side by side, at least 1. */
export function answersAtOnce(plan: RunPlan): number {
  const setting = plan.options[plan.chosen];
  if (setting === undefined || plan.memory === null) return Number.POSITIVE_INFINITY;
  const { kvCache, prompt, needed } = setting;
  const spare = Math.max(0, plan.memory.available - needed);
  return 1 + Math.floor(spare / Math.max(1, kvCache + prompt));
}

function nearestText({ nearest }: RunPlan): string {
  if (nearest === null) return 'No format fits: free memory, or take a smaller model.';
  const flags = [`--load ${nearest.load}`, `--dtype ${nearest.dtype}`];
  if (nearest.frames !== null) flags.push(`--frames ${nearest.frames}`);
  return `This fits, with ${bytesText(nearest.peakBytes)} in all: ${flags.join(' ')}.`;
}

/** `f32`, or `f32, 4bit` for weights in blocks. */
export function formatText({ dtype, load }: WeightFormat): string {
  return load === '16bit' ? dtype : `${load} weights and ${dtype}`;
}

/** Bytes for people. */
export function bytesText(bytes: number): string {
  const [unit, size] = bytes < 1e9 ? ['MB', 1e6] : ['GB', 1e9];
  return `${(bytes / size).toFixed(unit === 'GB' ? 1 : 0)} ${unit}`;
}
