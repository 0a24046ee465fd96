import type { ModelDescription } from '@llamavid/llm';

/** How weights are held: as numbers of `dtype`, or the language model's matrices in blocks of 8 or 4 bits. */
export interface WeightFormat {
  dtype: 'f32' | 'f16' | 'bf16';
  load: '16bit' | '8bit' | '4bit';
}

/** A graphics processor and its memory in bytes. */
export interface Gpu {
  /** `cuda:N`. */
  device: string;
  name: string;
  total: number;
  available: number;
}

/** What a run takes with one weight format, in bytes. */
export interface PlannedSetting extends WeightFormat {
  weights: { visualEncoder: number; tokenGenerator: number; languageModel: number };
  /** Keys and values of the prompt and of the longest answer. */
  kvCache: number;
  /** Visual features of all frames. */
  features: number;
  /** The prompt's embeddings and the visual tokens. */
  prompt: number;
  /** Working memory of each step; they follow each other and are not added up. */
  activations: {
    media: number;
    visualEncoder: number;
    tokenGenerator: number;
    prefill: number;
    logits: number;
  };
  /** What the run takes beyond what the process has already, at its highest. */
  needed: number;
  peakPhase: 'load' | 'encode' | 'tokens' | 'answer';
  /** The whole process at its highest. */
  peakBytes: number;
  /** Null where free memory is not known. */
  fits: boolean | null;
}

/** What a run takes, in bytes and tokens, told without reading weights or decoding frames. */
export interface RunPlan {
  frames: number;
  tokensPerFrame: number;
  /** Tokens of the prompt, visual ones included. */
  promptTokens: number;
  visualTokens: number;
  maxNewTokens: number;
  /** Tokens that prompt and answer can have in all. */
  contextLength: number;
  /** Frames and tokens that are computed at once. */
  steps: { encoderFrames: number; tokenFrames: number; prefillChunk: number };
  /** What a store of these features takes, by dtype. */
  featureBytes: { f32: number; f16: number };
  /** What the process has in memory now. */
  processBytes: number;
  /** Memory of the device, and which limit counts. Null where it is not known. */
  memory: { total: number; available: number; limit: 'machine' | 'cgroup' | 'gpu' } | null;
  /** Graphics processors, where they were looked for. */
  gpus: Gpu[];
  /** Ways to hold the weights, from the most exact to the smallest. */
  options: PlannedSetting[];
  /** Index of the option that would be taken. */
  chosen: number;
  /** What fits where the chosen option does not; null where that is not needed, or nothing fits. */
  nearest: (WeightFormat & { frames: number | null; peakBytes: number }) | null;
}

/** What is planned. */
export interface PlanRequest {
  /** Frames of each video or picture. */
  frames: readonly number[];
  /** Pixels of the largest picture among the sources. */
  sourcePixels: number;
  promptTokens: number;
  question: string;
  maxNewTokens: number;
  dtype: 'auto' | WeightFormat['dtype'];
  load: WeightFormat['load'];
  /** How keys and values are held. */
  kvCache: '16bit' | '8bit' | '4bit';
  /** `cpu` or `cuda:N`, or several with commas between. */
  device: string;
  /** How several devices share the language model. */
  split: 'layers' | 'tensor';
  /** Whether to tell what graphics processors there are, also for a run on the CPU. */
  listGpus?: boolean;
  /** Whether the weights are in memory already. */
  loaded?: boolean;
  /** Frames whose features are in memory already. */
  encodedFrames?: number;
  /** Whether features are read from a store a few frames at a time. */
  stored?: boolean;
}

/** Plans a run of the model that `description` is of. */
export function planRun(description: ModelDescription, request: PlanRequest): RunPlan {
  const processBytes = process.memoryUsage.rss();
  return JSON.parse(description.plan(JSON.stringify({ ...request, processBytes })));
}
