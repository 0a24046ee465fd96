export { type Catalogue, type FileEntry, type RepositoryEntry, readCatalogue } from './catalogue.js';
export type { FileProgress } from './fetch-file.js';
export { type PulledFile, type PulledModel, type PullOptions, type PullPlan, pull } from './pull.js';
export { pulledFolder } from './pulled.js';
export { hubCache } from './settings.js';
