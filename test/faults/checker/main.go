// Command checker decides by porcupine whether histories of users' keys, JSON lines on standard input, are linearizable: whether
// all that was answered could have been answered by one process that does one call after the other, each at some moment
// between its beginning and its end. Users are independent of each other, and so are their histories.
//
// What it knows of a user is one register: the active key and the retiring one, whether they are suspended, and what the active key is
// called and may do. Create fills it when there is no active key, Refresh replaces the active key in one step, Revoke empties it,
// Suspend and Resume stop and start both, Update changes the active key as it was read, Get and a strong Verify read it. So a lost key, two active
// keys, a moment without one in a Refresh, a lost Update and a strong acceptance after a revocation are all histories that no order explains.
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
	// Of Update: the id and the name that it was read with, the name that it gave, and whether the key may still do what Verify asks for.
	Base string `json:"base"`
	Name string `json:"name"`
	Wide bool   `json:"wide"`

	unknown bool
	index   int
}

// Keys that a user has; "" is none. A key that was made by a call without an answer is "?" and the call's number until an
// answer names it: then it is in `named`, so that no other can be it.
type keys struct {
	active, retiring, named string
	suspended               bool
	// Of the active key; of the retiring one, what it could do when it was replaced.
	name                string
	wide, retiringsWide bool
}

func (state keys) String() string {
	return fmt.Sprintf("active=%s retiring=%s name=%q wide=%t,%t suspended=%t", or(state.active, "none"),
		or(state.retiring, "none"), state.name, state.wide, state.retiringsWide, state.suspended)
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
			next = fresh(next, fmt.Sprintf("?%d", did.index), "")
			return true, next
		case did.Outcome == "KEY_EXISTS":
			return state.active != "", state
		}
		return state.active == "", fresh(next, did.Made, "")
	case "refresh":
		stopped := state.active != "" && state.suspended
		switch {
		case did.Outcome == "KEY_SUSPENDED":
			return stopped, state
		case did.unknown && stopped:
			return true, state
		case stopped || !did.unknown && !know(&next.active, did.Previous):
			return false, state
		}
		next.retiring, next.retiringsWide = "", false
		if did.Grace {
			next.retiring, next.retiringsWide = next.active, next.wide
		}
		made := did.Made
		if did.unknown {
			made = fmt.Sprintf("?%d", did.index)
		}
		name := state.name
		if state.active == "" {
			name = ""
		}
		return true, fresh(next, made, name)
	case "revoke":
		switch {
		case did.unknown:
		case did.Outcome == "NO_KEY":
			return state.active == "" && state.retiring == "", state
		case !know(&next.active, did.Ended) || !know(&next.retiring, did.Retiring):
			return false, state
		}
		next.active, next.retiring, next.suspended = "", "", false
		return true, next
	case "suspend", "resume":
		there := state.active != "" || state.retiring != ""
		switch {
		case did.Outcome == "NO_KEY":
			return !there, state
		case did.unknown && !there:
			return true, state
		case !there:
			return false, state
		case !did.unknown && (!know(&next.active, did.Made) || !know(&next.retiring, did.Retiring)):
			return false, state
		}
		next.suspended = did.Call == "suspend"
		return true, next
	case "update":
		read, base, _ := strings.Cut(did.Base, " ")
		able := state.active != "" && !state.suspended && state.name == base
		switch {
		case did.Outcome == "NO_KEY":
			return state.active == "", state
		case did.Outcome == "KEY_SUSPENDED":
			return state.active != "" && state.suspended, state
		case did.Outcome == "ETAG_MISMATCH":
			// An etag is of more than the name.
			return state.active != "", state
		case did.unknown && !able:
			return true, state
		case !able || !did.unknown && (did.Made != read || !know(&next.active, did.Made)):
			return false, state
		}
		next.name, next.wide = did.Name, did.Wide
		return true, next
	case "get":
		if did.Outcome == "NO_KEY" {
			return state.active == "", state
		}
		ok := state.active != "" && know(&next.active, did.Made)
		return ok, next
	case "verify":
		lives := did.Key == state.active || did.Key == state.retiring
		wide := state.wide
		if did.Key == state.retiring {
			wide = state.retiringsWide
		}
		switch did.Outcome {
		case "VALID":
			return lives && !state.suspended && wide, state
		case "INSUFFICIENT_SCOPE":
			return lives && !state.suspended && !wide, state
		case "SUSPENDED":
			return lives && state.suspended, state
		case "REVOKED":
			return !lives, state
		}
		// Whoever has a key was given it: it is known for ever.
		return false, state
	}
	panic("unknown call " + did.Call)
}

// The state once a key was made beside what else there is.
func fresh(state keys, made, name string) keys {
	state.active, state.name, state.wide, state.suspended = made, name, true, false
	return state
}

// Reads that got no answer tell nothing; changes that got none were made at some later time, which may be never: after all else.
func admit(did operation) (operation, bool) {
	reads := did.Call == "get" || did.Call == "verify"
	if did.Call == "verify" && !did.Strong {
		return did, false
	}
	switch did.Outcome {
	case "OK", "KEY_EXISTS", "NO_KEY", "KEY_SUSPENDED", "ETAG_MISMATCH",
		"VALID", "REVOKED", "NOT_FOUND", "SUSPENDED", "INSUFFICIENT_SCOPE":
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
