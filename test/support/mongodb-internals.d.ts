declare module "mongodb/lib/error.js" {
  export const MONGODB_ERROR_CODES: Record<string, number>;
}

declare module "mongodb/lib/connection_string.js" {
  export const OPTIONS: Record<string, { default?: unknown }>;
}
