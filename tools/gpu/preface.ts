/** What stands above the table of docs/benchmarks/gpu.md. */
export const preface = (measured: boolean): string => `# On a graphics processor

${measured ? '' : '**Nothing of this project has run on a graphics processor yet.** There is a build, which loads and answers on the CPU, and what follows is ready to run.\n\n'}Written by \`pnpm bench:gpu\`, from the repository or from a bundle of \`pnpm bundle:gpu\` on a machine that has a driver, CUDA 13's libraries and
PyTorch. Weights are random; ours and PyTorch's ("the reference's way": eager, with scaled dot product attention) run in turn on the same device. Each cell is the
median of the runs, the lowest and the highest in brackets; goals in **bold** are reached. Shares are of what PyTorch's product of two matrices of 8192 rows and a
copy of 2 GiB reach on the same device in the same run. Pixels come from the processor's memory in both. Correctness is \`pnpm test:gpu\`'s.
`;
