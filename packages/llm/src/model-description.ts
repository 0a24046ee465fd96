import {
  callNative,
  callNativeAsync,
  ModelDescription as NativeDescription,
  type Preprocessing,
} from '@llamavid/native';

/** What a model's small files say, without its weights: enough to write a prompt and count its tokens. */
export interface ModelDescription {
  /** Positions that prompt and answer share, rope scaling included. */
  contextLength: number;
  /** Visual tokens of a frame: the context token and the content tokens. */
  tokensPerFrame: number;
  /** What stands in a prompt for one video or picture. */
  imagePlaceholder: string;
  /** The conversation template that the model was trained with, where its `config.json` names one. */
  conversation: string | undefined;
  /** How frames become pixels. */
  preprocessing: Preprocessing;
  /** Tokens of a prompt, and the places (`<image>`) among them. */
  countPromptTokens(prompt: string): { promptTokens: number; places: number };
  /** @internal What an answer takes. Request and plan are JSON; `@llamavid/pipeline` knows them. */
  plan(request: string): string;
}

/** Reads a model folder's configuration and tokenizer. Runs outside the event loop's thread. */
export async function describeModel(folder: string): Promise<ModelDescription> {
  const native = await callNativeAsync(() => NativeDescription.read(folder));
  const { contextLength, tokensPerFrame, imagePlaceholder, preprocessing } = native;
  return {
    contextLength,
    tokensPerFrame,
    imagePlaceholder,
    conversation: native.conversation ?? undefined,
    preprocessing,
    countPromptTokens: (prompt) => callNative(() => native.countPromptTokens(prompt)),
    plan: (request) => callNative(() => native.plan(request)),
  };
}
