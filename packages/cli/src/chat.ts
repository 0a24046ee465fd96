import process from 'node:process';
import { createInterface } from 'node:readline';
import type { Chat, LlamaVid, LookedSource, OpenOptions } from '@llamavid/pipeline';
import { askOptions, type ChatFlags, filesOf, loadOptions, openOptions, wrong } from './flags.js';
import { Interrupt } from './interrupt.js';
import { checkFiles, lookAtFile, planFiles, shownOptions } from './media-files.js';
import { Progress } from './progress.js';
import { reportFailure } from './report-failure.js';
import { writeAnswer } from './write-answer.js';

const HELP = `/open <file>  talk about this file too (subtitles go with the file that the chat begins with)
/media        list the files that the chat is about
/reset        forget what was said; the files stay
/help         print this
/quit         leave (so does the end of the input)
Anything else is a question. Ctrl-C stops an answer.
`;

/** `llamavid chat`: one question a line, from a terminal or a pipe. */
export async function chat(paths: readonly string[], flags: ChatFlags): Promise<number> {
  using interrupt = new Interrupt();
  const { signal } = interrupt;
  const toOpen = openOptions(flags, paths, signal);
  const { conversationTemplates, LlamaVid } = await import('@llamavid/pipeline');
  const toAsk = askOptions(flags, conversationTemplates());
  if (paths.includes('-')) throw wrong('stdin holds the questions, so no file can come from it');
  checkFiles(filesOf(paths, flags));

  const progress = new Progress(flags.quiet ?? false);
  const looked: LookedSource[] = [];
  try {
    const toLoad = loadOptions(flags, signal);
    for (const path of paths) looked.push(await lookAtFile(flags.model, path, toOpen, progress));
    const dtype = await planFiles(flags.model, looked, { ...toOpen, ...toAsk, ...toLoad }, progress);
    const followUps = flags.keepVisualPrefix ? 'keep-visual-prefix' : 'exact';
    progress.step('loading the model');
    await using model = await LlamaVid.load(flags.model, { ...toLoad, dtype });
    const talk = new Talk(model, model.chat([], { ...toAsk, followUps }), toOpen, progress);
    for (const [index, path] of paths.entries()) await talk.add(path, looked[index] ?? path);
    progress.clear();
    return await (process.stdin.isTTY && process.stdout.isTTY
      ? converse(talk, interrupt)
      : readAll(talk, interrupt));
  } finally {
    progress.clear();
    for (const each of looked) await each.close();
  }
}

/** With a person: errors and Ctrl-C end a turn, not the chat. */
async function converse(talk: Talk, interrupt: Interrupt): Promise<number> {
  process.stdout.write('Ask away; /help lists what else can be typed.\n');
  const lines = createInterface({ input: process.stdin, output: process.stdout, prompt: '> ' });
  let answering: Interrupt | undefined;
  let cancelled = false;
  lines.on('SIGINT', () => {
    if (answering !== undefined) return answering.press();
    cancelled = true;
    lines.close();
  });
  lines.prompt();
  for await (const line of lines) {
    using turn = new Interrupt();
    answering = turn;
    try {
      if ((await talk.take(line, turn.signal)) === 'quit') break;
    } catch (error) {
      reportFailure(error, { json: false });
    } finally {
      answering = undefined;
    }
    if (interrupt.signal.aborted) break;
    lines.prompt();
  }
  lines.close();
  return cancelled || interrupt.signal.aborted ? 130 : 0;
}

/** From a pipe: every line is taken; a failed turn shows in the exit code. */
async function readAll(talk: Talk, { signal }: Interrupt): Promise<number> {
  const lines = createInterface({ input: process.stdin, terminal: false, signal });
  let exitCode = 0;
  for await (const line of lines) {
    try {
      if ((await talk.take(line, signal)) === 'quit') break;
    } catch (error) {
      exitCode = reportFailure(error, { json: false }) === 130 ? 130 : 1;
    }
    if (signal.aborted) break;
  }
  lines.close();
  return signal.aborted ? 130 : exitCode;
}

/** A chat and the files that it is about. */
class Talk {
  readonly #model: LlamaVid;
  readonly #chat: Chat;
  readonly #toOpen: OpenOptions;
  readonly #progress: Progress;
  readonly #paths: string[] = [];

  constructor(model: LlamaVid, chat: Chat, toOpen: OpenOptions, progress: Progress) {
    this.#model = model;
    this.#chat = chat;
    this.#toOpen = toOpen;
    this.#progress = progress;
  }

  /** Talks about a file too. */
  async add(path: string, source: LookedSource | string, options?: OpenOptions): Promise<void> {
    this.#chat.add(await this.#model.open(source, options));
    this.#paths.push(path);
  }

  /** Opens a file that was typed. A file of subtitles is not its own. */
  async open(path: string, signal: AbortSignal): Promise<void> {
    checkFiles([path]);
    const { subtitles } = this.#toOpen;
    const own = subtitles === 'auto' || subtitles === 'speech' ? subtitles : 'none';
    const options = { ...this.#toOpen, subtitles: own, signal };
    await this.add(path, path, shownOptions(path, options, this.#progress));
  }

  /** Does what one line says. */
  async take(line: string, signal: AbortSignal): Promise<'quit' | undefined> {
    const text = line.trim();
    const [, command, rest = ''] = /^\/(\S*)\s*(.*)$/s.exec(text) ?? [];
    if (command === undefined) return text === '' ? undefined : await this.#ask(text, signal);
    switch (command) {
      case 'quit':
      case 'exit':
        return 'quit';
      case 'help':
        process.stdout.write(HELP);
        return undefined;
      case 'media':
        process.stdout.write(this.#paths.length === 0 ? 'no files\n' : `${this.#paths.join('\n')}\n`);
        return undefined;
      case 'reset':
        this.#chat.reset();
        return undefined;
      case 'open': {
        const path = rest.replace(/^(["'])(.*)\1$/s, '$2');
        if (path === '') throw wrong('/open needs a file', '/open <file>');
        await this.open(path, signal);
        this.#progress.clear();
        return undefined;
      }
      default:
        throw wrong(`/${command} is not known`, '/help lists what is.');
    }
  }

  async #ask(question: string, signal: AbortSignal): Promise<undefined> {
    let begun = false;
    try {
      for await (const delta of this.#chat.send(question, { signal })) {
        this.#progress.clear();
        writeAnswer(delta);
        begun = true;
      }
      begun = true;
    } finally {
      this.#progress.clear();
      if (begun) process.stdout.write('\n');
    }
  }
}
