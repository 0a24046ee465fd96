/** A record that took no part in its step. */
export interface RecordFailure {
  /** The record's `id`, or its place in the list (`#12`) where it has none. */
  id: string;
  reason: string;
}

/** What one optimizer step did. */
export interface StepReport {
  /** From 1. */
  step: number;
  /** All steps of the run. */
  steps: number;
  /** Epochs done with this step, in parts of one. */
  epoch: number;
  /** Mean cross entropy of the trained tokens; null when no record of the step could be read, and nothing was updated. */
  loss: number | null;
  /** The rate of this step. */
  learningRate: number;
  /** Norm of all gradients together, before clipping; null as `loss` is. */
  gradientNorm: number | null;
  /** Records that were trained on. */
  samples: number;
  /** Positions that the language model read, visual tokens included. */
  tokens: number;
  /** Pictures and frames that were encoded or read. */
  frames: number;
  /** From the end of the step before to the end of this one, waiting for data included. */
  seconds: number;
  /** Of `seconds`, waiting for media. */
  dataSeconds: number;
  tokensPerSecond: number;
  framesPerSecond: number;
  /** What is left at the mean rate of the last steps. */
  remainingSeconds: number;
  /** The most memory that this process has held so far. */
  peakRssBytes: number;
  failures: RecordFailure[];
  /** The checkpoint that was saved behind this step. */
  checkpoint?: string;
}
