import fc from "fast-check";

// That a property fails is enough here: a smaller example of how would take many times as long.
fc.configureGlobal({ endOnFailure: true });
