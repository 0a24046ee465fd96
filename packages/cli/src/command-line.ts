import { readFileSync } from 'node:fs';
import { LlamaVidError } from '@llamavid/errors';
import { recipeNames } from '@llamavid/train/recipes';
import { Command, CommanderError } from 'commander';
import { ask } from './ask.js';
import { addCacheList, addCachePrune, addCacheRemove } from './cache.js';
import { chat } from './chat.js';
import { addConvert } from './convert.js';
import { type DataCheckFlags, dataCheck, dataPublished } from './data.js';
import { addDoctor } from './doctor.js';
import { addEncode } from './encode.js';
import {
  type AskFlags,
  addAnswerFlags,
  addMediaFlags,
  addModelFlags,
  type ChatFlags,
  kvCacheOption,
  oneOf,
  parseWholeNumber,
} from './flags.js';
import { addInspect } from './inspect.js';
import { addMovieFeatures } from './movie-features.js';
import { type PlanFlags, plan } from './plan.js';
import { profiled } from './profiled.js';
import { addPull } from './pull.js';
import { reportFailure } from './report-failure.js';
import { addTrainFlags, type TrainFlags, train } from './train.js';
import { addTranscribe } from './transcribe.js';
import { addWorldRender } from './world.js';

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

  const askCommand = command(program, 'ask', 'Ask questions about one or several videos or pictures.')
    .argument(
      '[media-and-questions...]',
      'files (`-` is stdin), then the question, or several, each in quotes',
    )
    .usage('[options] <media...> "<question>" ["<question>" ...]');
  addModelFlags(askCommand);
  addAnswerFlags(askCommand);
  addMediaFlags(askCommand);
  askCommand
    .option(
      '--questions <file>',
      'ask what this file holds, a question a line, or {"question": "…"} a line in a .jsonl file; all words are files then',
    )
    .option('--json', 'write one JSON object a question to stdout instead of text')
    .option(
      '--timeline <format>',
      'write where in the video what is asked about is seen, as json or vtt, instead of an answer; with --json beside it',
      oneOf('--timeline', ['json', 'vtt']),
    )
    .option('--profile <file>', 'write where time went, as JSON that Perfetto opens too')
    .option('--dry-run', 'print the prompt with the times of its frames, and load no weights')
    .action(async (words: string[], flags: AskFlags) =>
      end(await profiled(flags.profile, () => ask(words, flags))),
    );

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
  chatCommand.option(
    '--keep-visual-prefix',
    'make the visual tokens for the first question alone: later turns are much faster, and see what it asked for',
  );
  chatCommand.action(async (media: string[], flags: ChatFlags) => end(await chat(media, flags)));

  addEncode(
    command(program, 'encode', 'Encode videos into the store, so that questions about them begin at once.'),
    end,
  );
  addMovieFeatures(
    command(
      program,
      'movie-features',
      "Make features of movies of MovieNet's layout: key frames and subtitles.",
    ),
    end,
  );
  const cache = command(program, 'cache', 'Look at the store of visual features, and make room.');
  addCacheList(command(cache, 'ls', 'List what is stored, the one that was used last first.'), end);
  addCacheRemove(command(cache, 'rm', 'Remove videos.'), end);
  addCachePrune(command(cache, 'prune', 'Remove what was not used for longest.'), end);

  addPull(
    command(program, 'pull', 'Fetch a model of the Hugging Face hub, with the side files that it needs.'),
    end,
  );

  const planCommand = command(
    program,
    'plan',
    'Tell what a question takes of memory with each weight format, and what fits. Loads no weights, decodes no frame.',
  )
    .argument('[media...]', 'files that the question is about')
    .usage('[options] [media...]');
  addModelFlags(planCommand);
  addMediaFlags(planCommand);
  planCommand
    .option('--question <text>', 'the question (default: one of usual length)')
    .option('--conversation <template>', 'conversation template')
    .option('--max-new-tokens <n>', 'the longest answer', parseWholeNumber('--max-new-tokens', 1), 512)
    .addOption(kvCacheOption())
    .option('--json', 'write one JSON object to stdout instead of text')
    .action(async (media: string[], flags: PlanFlags) => end(await plan(media, flags)));

  const trainCommand = command(program, 'train', 'Train one stage, as a recipe says.')
    .argument('<recipe>', 'name of a recipe (`llamavid train --help` lists them), or a file')
    .usage('[options] <recipe> --data <file> -o <folder>')
    .addHelpText('after', () => `\nRecipes:\n  ${recipeNames().join('\n  ')}`);
  addTrainFlags(trainCommand);
  trainCommand.action(async (recipe: string, flags: TrainFlags) => end(await train(recipe, flags)));

  const data = command(program, 'data', 'Look at training data.');
  command(
    data,
    'check',
    'Name each bad record of a list: missing files, wrong tags, empty or unordered turns.',
  )
    .argument('<list>', "records in LLaVA's JSON format")
    .option('--images <folder>', "folder of the records' pictures")
    .option('--videos <folder>', "folder of the records' videos and feature files")
    .option(
      '--recipe <recipe>',
      'also name records that this recipe cuts or learns nothing from (with --llm)',
    )
    .option('--llm <folder>', 'base language model, whose tokenizer makes the samples')
    .option('--skip-videos', 'only look whether videos are there, do not open them')
    .option('--json', 'write one JSON object to stdout instead of text')
    .option('--quiet', 'no progress on stderr')
    .action(async (list: string, flags: DataCheckFlags) => end(await dataCheck(list, flags)));
  command(data, 'published', 'What a folder lacks of the six published data lists and their media.')
    .argument('<root>', 'folder that holds data/ and model_zoo/')
    .option('--json', 'write one JSON object to stdout instead of text')
    .action(async (root: string, flags: { json?: boolean }) => end(await dataPublished(root, flags)));

  addConvert(
    command(program, 'convert', 'Make one folder of the parts of a model, quantised if wanted.'),
    end,
  );
  addInspect(
    command(program, 'inspect', 'What a model or a file of weights holds, and what is missing.'),
    end,
  );
  addDoctor(command(program, 'doctor', 'Look whether this machine and a model are ready.'), end);

  addTranscribe(
    command(program, 'transcribe', 'Write down what is said in a video, as subtitles, with a Whisper model.'),
    end,
  );

  const worldCommand = command(program, 'world', 'The toy world that the embedded model is trained on.');
  addWorldRender(
    command(worldCommand, 'render', 'Render its videos and pictures with their questions.'),
    end,
  );

  program.addHelpText(
    'after',
    `
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 cancelled.

Examples:
  llamavid ask shapes.mp4 "What does the red star do?"
  llamavid pull YanweiLi/llama-vid-7b-full-224-video-fps-1
  llamavid ask cooking.mp4 "What is added after the onions?" --model YanweiLi/llama-vid-7b-full-224-video-fps-1
  llamavid ask film.mp4 "Why does she leave?" --subtitles auto --model models/llama-vid-7b-long
  llamavid ask shapes.mp4 "where is the red star?" --timeline vtt
  llamavid ask before.jpg after.jpg "What has changed?" --model models/llama-vid-7b --json
  llamavid ask talk.mp4 "Who speaks?" "What is it about?" --model models/llama-vid-7b
  llamavid chat talk.mp4 --model models/llama-vid-7b
  llamavid encode lecture.mp4 film.mkv --model models/llama-vid-7b-long
  llamavid movie-features videos files -o movies --format pkl --model models/llama-vid-7b-long
  llamavid ask movies/tt0120338.pkl "Why does she leave?" --model models/llama-vid-7b-long
  llamavid cache ls
  llamavid plan film.mp4 --model models/llama-vid-7b
  llamavid train video-7b-stage1 --llm vicuna-7b-v1.5 --vision eva_vit_g.pth \\
    --query-model instruct_blip_vicuna7b_trimmed.pth --data pretrain.json --images images --videos videos -o stage1
  llamavid data check pretrain.json --images images --videos videos
  llamavid convert llama-vid-7b eva_vit_g.pth bert-base-uncased -o llama-vid-7b-4bit --quantize q4_k
  llamavid transcribe film.mp4 --model whisper-small -o film.srt
  llamavid world render world --count 20`,
  );
  return program;
}

function command(program: Command, name: string, description: string): Command {
  return program.command(name).description(description).helpOption('--help', 'print this help');
}

function wrongUsage(error: CommanderError): LlamaVidError {
  const message =
    error.code === 'commander.help'
      ? 'a command is missing: ask, chat, encode, movie-features, cache, pull, plan, train, data, convert, inspect, doctor, transcribe or world'
      : error.message;
  return new LlamaVidError('INVALID_ARGUMENT', message.replace(/^error: /, '').replaceAll('\n', ' '), {
    hint: '`llamavid --help` and `llamavid ask --help` list what there is.',
    cause: error,
  });
}
