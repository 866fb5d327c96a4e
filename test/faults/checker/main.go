// Command checker decides by porcupine whether histories of users' keys, JSON lines on standard input, are linearizable: whether
// all that was answered could have been answered by one process that does one call after the other, each at some moment
// between its beginning and its end. Users are independent of each other, and so are their histories.
//
// What it knows of a user is one register: the active key and the retiring one. Create fills it when there is no active key,
// Refresh replaces the active key in one step, Revoke empties it, Get and a strong Verify read it. So a lost key, two active
// keys, a moment without one in a Refresh and a strong acceptance after a revocation are all histories that no order explains.
//
// It prints a JSON line for each user, and exits 1 when one is not linearizable.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// An operation as it stands in the history. Keys are named by their ids.
type operation struct {
	User    string `json:"user"`
	Client  int    `json:"client"`
	Replica int    `json:"replica"`
	Call    string `json:"call"`
	BeganUs int64  `json:"beganUs"`
	EndedUs int64  `json:"endedUs"`
	Outcome string `json:"outcome"`
	// Of Verify: the key that was asked about, and whether every earlier change must show.
	Key    string `json:"key"`
	Strong bool   `json:"strong"`
	// Of Create, Refresh and Get: the key that was made, or is there.
	Made string `json:"made"`
	// Of Refresh: whether the old key stays good, and which it was.
	Grace    bool   `json:"grace"`
	Previous string `json:"previous"`
	// Of Revoke: what it ended.
	Ended    string `json:"ended"`
	Retiring string `json:"retiring"`

	unknown bool
	index   int
}

// Keys that a user has; "" is none. A key that was made by a call without an answer is "?" and the call's number until an
// answer names it: then it is in `named`, so that no other can be it.
type keys struct {
	active, retiring, named string
}

func (state keys) String() string {
	return fmt.Sprintf("active=%s retiring=%s", or(state.active, "none"), or(state.retiring, "none"))
}

// Whether `held` can be the key that was seen, and the state that knows it.
func (state keys) see(held *string, seen string, minted map[string]bool) bool {
	if *held == seen {
		return true
	}
	if !strings.HasPrefix(*held, "?") || seen == "" || minted[seen] || strings.Contains(state.named, seen) {
		return false
	}
	*held = seen
	return true
}

// What an operation does to a state; false when it can't have had its answer there.
func (state keys) after(did operation, minted map[string]bool) (bool, keys) {
	next := state
	know := func(held *string, seen string) bool {
		before := *held
		if !state.see(held, seen, minted) {
			return false
		}
		if before != seen {
			next.named += seen + " "
		}
		return true
	}
	switch did.Call {
	case "create":
		switch {
		case did.unknown && state.active != "":
			return true, state
		case did.unknown:
			next.active = fmt.Sprintf("?%d", did.index)
			return true, next
		case did.Outcome == "KEY_EXISTS":
			return state.active != "", state
		}
		next.active = did.Made
		return state.active == "", next
	case "refresh":
		if !did.unknown && !know(&next.active, did.Previous) {
			return false, state
		}
		next.retiring = ""
		if did.Grace {
			next.retiring = next.active
		}
		next.active = did.Made
		if did.unknown {
			next.active = fmt.Sprintf("?%d", did.index)
		}
		return true, next
	case "revoke":
		switch {
		case did.unknown:
		case did.Outcome == "NO_KEY":
			return state.active == "" && state.retiring == "", state
		case !know(&next.active, did.Ended) || !know(&next.retiring, did.Retiring):
			return false, state
		}
		next.active, next.retiring = "", ""
		return true, next
	case "get":
		if did.Outcome == "NO_KEY" {
			return state.active == "", state
		}
		ok := state.active != "" && know(&next.active, did.Made)
		return ok, next
	case "verify":
		lives := did.Key == state.active || did.Key == state.retiring
		switch did.Outcome {
		case "VALID":
			return lives, state
		case "REVOKED":
			return !lives, state
		}
		// Whoever has a key was given it: it is known for ever.
		return false, state
	}
	panic("unknown call " + did.Call)
}

// Reads that got no answer tell nothing; changes that got none were made at some later time, which may be never: after all else.
func admit(did operation) (operation, bool) {
	reads := did.Call == "get" || did.Call == "verify"
	if did.Call == "verify" && !did.Strong {
		return did, false
	}
	switch did.Outcome {
	case "OK", "KEY_EXISTS", "NO_KEY", "VALID", "REVOKED", "NOT_FOUND":
		return did, true
	case "CONFLICT", "OVERLOADED", "DB_INCOMPLETE":
		// Said only where nothing was written.
		return did, false
	}
	did.unknown = true
	return did, !reads
}

func modelOf(history []operation) (porcupine.Model, []porcupine.Operation) {
	minted := map[string]bool{}
	operations := make([]porcupine.Operation, 0, len(history))
	for _, did := range history {
		if (did.Call == "create" || did.Call == "refresh") && did.Outcome == "OK" {
			minted[did.Made] = true
		}
		end := did.EndedUs
		if did.unknown {
			end = math.MaxInt64
		}
		operations = append(operations, porcupine.Operation{
			ClientId: did.Client, Input: did, Call: did.BeganUs, Return: end,
		})
	}
	return porcupine.Model{
		Init: func() any { return keys{} },
		Step: func(state, input, _ any) (bool, any) {
			ok, next := state.(keys).after(input.(operation), minted)
			return ok, next
		},
		DescribeOperation: func(input, _ any) string { return describe(input.(operation)) },
		DescribeState:     func(state any) string { return state.(keys).String() },
	}, operations
}

func describe(did operation) string {
	fields := []string{did.Call}
	for _, field := range []struct{ name, value string }{
		{"", did.Key}, {"previous ", did.Previous}, {"ended ", did.Ended}, {"retiring ", did.Retiring},
	} {
		if field.value != "" {
			fields = append(fields, field.name+field.value)
		}
	}
	if did.Grace {
		fields = append(fields, "with grace")
	}
	return fmt.Sprintf("%s → %s %s (replica %d)", strings.Join(fields, " "), did.Outcome, did.Made, did.Replica)
}

type verdict struct {
	User       string `json:"user"`
	Operations int    `json:"operations"`
	Result     string `json:"result"`
	// The first of those that no order explains, in the longest order that porcupine found for the others.
	Stuck string `json:"stuck,omitempty"`
	Where string `json:"where,omitempty"`
}

func judge(user string, history []operation, limit time.Duration, plots string) verdict {
	for index := range history {
		history[index].index = index
	}
	model, operations := modelOf(history)
	result, info := porcupine.CheckOperationsVerbose(model, operations, limit)
	found := verdict{User: user, Operations: len(operations), Result: strings.ToLower(string(result))}
	if result != porcupine.Illegal {
		return found
	}
	found.Stuck = stuckIn(model, operations, info)
	if plots != "" {
		found.Where = filepath.Join(plots, user+".html")
		if err := porcupine.VisualizePath(model, info, found.Where); err != nil {
			found.Where = err.Error()
		}
	}
	return found
}

func stuckIn(model porcupine.Model, operations []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []int
	for _, partition := range info.PartialLinearizations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	state := model.Init()
	placed := map[int]bool{}
	for _, index := range longest {
		placed[index] = true
		_, state = model.Step(state, operations[index].Input, nil)
	}
	stuck := -1
	for index, did := range operations {
		if !placed[index] && (stuck < 0 || did.Return < operations[stuck].Return) {
			stuck = index
		}
	}
	if stuck < 0 {
		return ""
	}
	return fmt.Sprintf("%s, when %s", describe(operations[stuck].Input.(operation)), state.(keys))
}

func run() error {
	limit := flag.Duration("limit", time.Minute, "time for one user's history; beyond, the result is unknown")
	plots := flag.String("plots", "", "folder for a picture of each history that is not linearizable")
	flag.Parse()
	histories := map[string][]operation{}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var did operation
		if err := json.Unmarshal(lines.Bytes(), &did); err != nil {
			return err
		}
		if did, tells := admit(did); tells {
			histories[did.User] = append(histories[did.User], did)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	users := make([]string, 0, len(histories))
	for user := range histories {
		users = append(users, user)
	}
	sort.Strings(users)
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	bad := 0
	for _, user := range users {
		found := judge(user, histories[user], *limit, *plots)
		if found.Result != "ok" {
			bad++
		}
		if err := out.Encode(found); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d histories are not linearizable, or not decided in time", bad, len(users))
	}
	return nil
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
