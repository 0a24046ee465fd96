export {
  checkData,
  type DataCheckOptions,
  type DataFinding,
  type DataSummary,
  type PublishedData,
  type PublishedList,
  publishedData,
} from './data-list.js';
export { type PlannedPart, planText, planTraining, type TrainingPlan } from './plan.js';
export {
  changeRecipe,
  checkRecipe,
  type Lora,
  loadRecipe,
  type Recipe,
  type RecipeChanges,
  recipeNames,
} from './recipe.js';
export type { RecordFailure, StepReport } from './step-report.js';
export { describeStep, type ProgressStream, TerminalProgress } from './terminal-progress.js';
export { train } from './train.js';
export type { PlanOptions, TrainingInputs, TrainOptions } from './train-options.js';
export { TrainingRun, type TrainingSummary } from './training-run.js';
