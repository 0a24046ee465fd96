import process from 'node:process';
import { type AnswerFlags, filesOf, type MediaFlags, type ModelFlags, openOptions } from './flags.js';
import { Interrupt } from './interrupt.js';
import { checkFiles, sourceOf } from './media-files.js';
import { Progress } from './progress.js';

export type PlanFlags = ModelFlags &
  MediaFlags &
  Pick<AnswerFlags, 'conversation' | 'maxNewTokens' | 'kvCache'> & { question?: string; json?: boolean };

/** `llamavid plan`: what a question about these files takes of memory, and whether it is there. */
export async function plan(paths: readonly string[], flags: PlanFlags): Promise<number> {
  using interrupt = new Interrupt();
  const toOpen = openOptions(flags, paths, interrupt.signal);
  // The addon is loaded here and not for `--help`.
  const [{ LlamaVid }, { planText }] = await Promise.all([
    import('@llamavid/pipeline'),
    import('./plan-text.js'),
  ]);
  checkFiles(filesOf(paths, flags));
  const { model, device, dtype, load, split, question, conversation, maxNewTokens, kvCache } = flags;
  const progress = new Progress(flags.quiet ?? false);
  try {
    progress.step('looking at the files');
    const options = { ...toOpen, device, dtype, load, split, question, conversation, maxNewTokens, kvCache };
    const planned = await LlamaVid.plan(model, paths.map(sourceOf), options);
    progress.clear();
    process.stdout.write(flags.json ? `${JSON.stringify(planned)}\n` : planText(planned));
  } finally {
    progress.clear();
  }
  return 0;
}
