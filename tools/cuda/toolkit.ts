/** CUDA's compiler, from the wheels that NVIDIA publishes, in a folder of its own that may be deleted at any time. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { availableParallelism, homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import process from 'node:process';

const wheels = join(import.meta.dirname, 'requirements.txt');

/** The libraries that candle names to the linker and that a process opens for itself, see `crates/llamavid-runtime/src/cuda.rs`. */
const opened = ['cuda', 'cublas', 'cublasLt', 'curand', 'nvrtc', 'nccl'];

/** `LLAMAVID_CUDA_TOOLKIT`, or a folder of the user's cache. */
function cacheFolder(): string {
  const cache = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache');
  return process.env['LLAMAVID_CUDA_TOOLKIT'] || join(cache, 'llamavid-cuda');
}

/** The toolkit's folder, as `CUDA_HOME` names it. Fetches 105 MB when it is first asked for. */
export function cudaToolkit(): string {
  const digest = createHash('sha256').update(readFileSync(wheels)).digest('hex').slice(0, 12);
  const folder = join(cacheFolder(), `toolkit-${digest}`);
  const home = (parent: string) => join(parent, 'nvidia/cu13');
  if (existsSync(folder)) {
    // Fetched for a build that named fewer of them.
    addArchives(home(folder));
    return home(folder);
  }
  console.error(`fetching CUDA's compiler into ${folder}`);
  const unfinished = `${folder}.${process.pid}`;
  mkdirSync(unfinished, { recursive: true });
  try {
    const checked = ['--no-deps', '--only-binary=:all:', '--require-hashes', '--requirement', wheels];
    const quiet = ['--quiet', '--disable-pip-version-check', '--no-compile'];
    execFileSync('python3', ['-m', 'pip', 'install', ...quiet, '--target', unfinished, ...checked], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    addLinkFiles(home(unfinished));
    renameSync(unfinished, folder);
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
  return home(folder);
}

/**
 * Lets the linker find each library of CUDA as an archive: the runtime is linked in, and the others are empty, so that their functions
 * stay open and the addon asks the system for none of them when it is loaded.
 */
function addLinkFiles(home: string): void {
  const libraries = join(home, 'lib');
  addArchives(home);
  symlinkSync('libcudart_static.a', join(libraries, 'libcudart.a'));
  symlinkSync('lib', join(home, 'lib64'));
}

function addArchives(home: string): void {
  const archives = opened.map((name) => join(home, `lib/lib${name}.a`));
  for (const archive of archives.filter((each) => !existsSync(each))) execFileSync('ar', ['rcs', archive]);
}

/** The environment in which cargo builds with CUDA for one architecture, `sm_90a` say. */
export function cudaEnvironment(architecture: string): NodeJS.ProcessEnv {
  const home = cudaToolkit();
  return {
    ...process.env,
    CUDA_HOME: home,
    CUDA_PATH: home,
    CUDA_ROOT: home,
    CUDA_TOOLKIT_ROOT_DIR: home,
    NVCC: join(home, 'bin/nvcc'),
    PATH: `${join(home, 'bin')}${delimiter}${process.env['PATH']}`,
    CUDA_COMPUTE_CAP: architecture.replace('sm_', ''),
    LLAMAVID_CUDA_ARCHITECTURE: architecture,
    CUDAFORGE_THREADS: String(availableParallelism()),
    CARGO_PROFILE_RELEASE_STRIP: 'symbols',
    // Functions of CUDA are bound when they are first called, by when their libraries are open.
    RUSTFLAGS: '-C relro-level=partial -C link-arg=-Wl,-z,lazy',
  };
}
