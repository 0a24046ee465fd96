import { readFileSync } from 'node:fs';
import { LlamaVidError } from '@llamavid/errors';
import { Command, CommanderError } from 'commander';
import { ask } from './ask.js';
import { chat } from './chat.js';
import { type AskFlags, addAnswerFlags, addMediaFlags, addModelFlags, type ChatFlags } from './flags.js';
import { reportFailure } from './report-failure.js';

/** Runs one command and gives its exit code: 0 done, 1 failed, 2 wrong usage, 130 cancelled. */
export async function runCommandLine(args: string[]): Promise<number> {
  // Wrong usage is reported as JSON too, and then the flags are not parsed yet.
  const json = args.includes('--json');
  let exitCode = 0;
  const program = createProgram((code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync(args, { from: 'user' });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return 0;
      return reportFailure(wrongUsage(error), { json });
    }
    return reportFailure(error, { json });
  }
}

function createProgram(end: (exitCode: number) => void): Command {
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  const program = new Command('llamavid')
    .description('Ask questions about videos and pictures. Answers go to stdout, progress to stderr.')
    .version(version, '--version', 'print the version')
    .helpOption('--help', 'print this help')
    .helpCommand(false)
    // Errors are written in one place, report-failure.ts.
    .configureOutput({ outputError: () => {} })
    .exitOverride();

  const askCommand = command(program, 'ask', 'Ask one question about one or several videos or pictures.')
    .argument('<media-and-question...>', 'files (`-` is stdin), then the question as the last word')
    .usage('[options] <media...> "<question>"');
  addModelFlags(askCommand);
  addAnswerFlags(askCommand);
  addMediaFlags(askCommand);
  askCommand
    .option('--json', 'write one JSON object to stdout instead of text')
    .option('--dry-run', 'print the prompt with the times of its frames, and load no weights')
    .action(async (words: string[], flags: AskFlags) => end(await ask(words, flags)));

  const chatCommand = command(
    program,
    'chat',
    'Ask one question after another; /help lists what else can be typed.',
  )
    .argument('[media...]', 'files to talk about')
    .usage('[options] [media...]');
  addModelFlags(chatCommand);
  addAnswerFlags(chatCommand);
  addMediaFlags(chatCommand);
  chatCommand.action(async (media: string[], flags: ChatFlags) => end(await chat(media, flags)));

  program.addHelpText(
    'after',
    `
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 cancelled.

Examples:
  llamavid ask shapes.mp4 "What does the red star do?"
  llamavid ask cooking.mp4 "What is added after the onions?" --model models/llama-vid-7b
  llamavid ask film.mp4 "Why does she leave?" --subtitles film.srt --model models/llama-vid-7b-long
  llamavid ask before.jpg after.jpg "What has changed?" --model models/llama-vid-7b --json
  llamavid chat talk.mp4 --model models/llama-vid-7b`,
  );
  return program;
}

function command(program: Command, name: string, description: string): Command {
  return program.command(name).description(description).helpOption('--help', 'print this help');
}

function wrongUsage(error: CommanderError): LlamaVidError {
  const message = error.code === 'commander.help' ? 'a command is missing: ask or chat' : error.message;
  return new LlamaVidError('INVALID_ARGUMENT', message.replace(/^error: /, '').replaceAll('\n', ' '), {
    hint: '`llamavid --help` and `llamavid ask --help` list what there is.',
    cause: error,
  });
}
