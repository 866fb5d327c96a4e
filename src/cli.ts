#!/usr/bin/env node
import { serve } from "./main.ts";
process.exitCode = await serve();
