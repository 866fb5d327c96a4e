// Command load sends gRPC calls with many different messages over raw HTTP/2, which h2load can't: it knows one body.
// Each connection is one goroutine that keeps a number of calls in flight, so that it costs little on the load's core.
// It prints {"event":"start"} and {"event":"end"} around the measured time, and {"event":"result",…} last.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	warming int32 = iota
	measuring
	ending
)

const (
	receiveWindow = 8 << 20
	maxFrame      = 16 << 10
	alphabet      = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

type options struct {
	address, path, mode, prefix string
	connections, inFlight       int
	expectAt                    int
	once, wait                  bool
	expect                      []byte
	headers                     headerList
}

type headerList []string

func (list *headerList) String() string { return strings.Join(*list, ", ") }
func (list *headerList) Set(text string) error {
	*list = append(*list, text)
	return nil
}

var (
	phase atomic.Int32
	next  atomic.Int64
)

// result is what one connection saw while the phase was `measuring`.
type result struct {
	answers, unexpected int64
	errors              map[string]int64
	latencies           []time.Duration
}

// source gives the messages to send; nil: there are no more.
type source func() []byte

func main() {
	var given options
	var expect, messagesFile string
	var warmup, duration time.Duration
	flag.StringVar(&given.address, "address", "", "host:port")
	flag.StringVar(&given.path, "path", "", "path of the method")
	flag.StringVar(&given.mode, "mode", "unary", "unary; stream: all messages of a connection on one call; flood: unary calls of Verify with keys never issued")
	flag.StringVar(&given.prefix, "prefix", "lk", "prefix of the flood's keys")
	flag.StringVar(&messagesFile, "messages", "", "file of messages, each after its length in 4 bytes, big-endian")
	flag.IntVar(&given.connections, "c", 4, "connections")
	flag.IntVar(&given.inFlight, "m", 32, "calls (stream: messages) in flight on each")
	flag.BoolVar(&given.once, "once", false, "send each message once, and measure all of it")
	flag.BoolVar(&given.wait, "wait", false, "dial until a connection is accepted")
	flag.StringVar(&expect, "expect", "", "bytes, in hex, that each answered message must have")
	flag.IntVar(&given.expectAt, "expect-at", 0, "where in the message they must be")
	flag.DurationVar(&warmup, "warmup", time.Second, "time before the measured time")
	flag.DurationVar(&duration, "duration", time.Second, "measured time")
	flag.Var(&given.headers, "H", "a header, as name: value")
	flag.Parse()

	var err error
	if given.expect, err = hex.DecodeString(expect); err != nil {
		fail(err)
	}
	var messages [][]byte
	if given.mode != "flood" {
		if messages, err = readMessages(messagesFile); err != nil {
			fail(err)
		}
	}

	if given.once {
		phase.Store(measuring)
		event("start")
	}
	started := time.Now()
	results := make([]result, given.connections)
	var all sync.WaitGroup
	for index := range results {
		all.Add(1)
		go func() {
			defer all.Done()
			results[index] = run(given, sourceOf(given, messages))
		}()
	}
	seconds := 0.0
	if !given.once {
		time.Sleep(warmup)
		phase.Store(measuring)
		event("start")
		started = time.Now()
		time.Sleep(duration)
		phase.Store(ending)
		seconds = time.Since(started).Seconds()
		event("end")
	}
	all.Wait()
	if given.once {
		seconds = time.Since(started).Seconds()
		event("end")
	}
	report(results, seconds)
}

func sourceOf(given options, messages [][]byte) source {
	if given.mode == "flood" {
		return floodSource(given.prefix)
	}
	if given.once {
		return func() []byte {
			index := next.Add(1) - 1
			if index >= int64(len(messages)) {
				return nil
			}
			return messages[index]
		}
	}
	return func() []byte { return messages[int(next.Add(1)-1)%len(messages)] }
}

// floodSource makes VerifyRequests with well-formed keys that nobody issued, a new one each time.
func floodSource(prefix string) source {
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	random := mathrand.New(mathrand.NewChaCha8(seed))
	length := len(prefix) + 1 + 16 + 1 + 43 + 6
	message := make([]byte, 2+length)
	message[0], message[1] = 0x0a, byte(length)
	key := message[2:]
	copy(key, prefix)
	return func() []byte {
		at := len(prefix)
		key[at] = '_'
		for index := at + 1; index < length-6; index++ {
			key[index] = alphabet[random.IntN(62)]
		}
		key[at+17] = '_'
		checksum := crc32.ChecksumIEEE(key[:length-6])
		for index := length - 1; index >= length-6; index-- {
			key[index] = alphabet[checksum%62]
			checksum /= 62
		}
		return message
	}
}

func readMessages(file string) ([][]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var messages [][]byte
	for len(content) >= 4 {
		size := binary.BigEndian.Uint32(content)
		messages = append(messages, content[4:4+size])
		content = content[4+size:]
	}
	if len(messages) == 0 {
		return nil, errors.New("there are no messages in " + file)
	}
	return messages, nil
}

// call is one in flight: a whole unary call, or the stream's only one.
type call struct {
	id       uint32
	sent     time.Time
	window   int64
	received []byte
	status   string
}

type connection struct {
	options
	source
	result
	socket       net.Conn
	writer       *bufio.Writer
	framer       *http2.Framer
	decoder      *hpack.Decoder
	decoding     *call
	encoder      *hpack.Encoder
	encoded      bytes.Buffer
	headerBlock  []byte
	frame        []byte
	calls        map[uint32]*call
	free         []*call
	nextID       uint32
	window       int64
	streamWindow int64
	unreturned   uint32
	dry          bool
	// stream mode: when each message in flight was sent, oldest first.
	sentAt []time.Time
	// stream mode: bytes taken from the stream's window and not returned yet.
	streamUnreturned uint32
}

func run(given options, messages source) result {
	socket, err := dial(given)
	if err != nil {
		return result{errors: map[string]int64{err.Error(): 1}}
	}
	defer socket.Close()
	c := &connection{
		options: given, source: messages, socket: socket,
		writer: bufio.NewWriterSize(socket, 64<<10),
		calls:  map[uint32]*call{}, nextID: 1, window: 65535, streamWindow: 65535,
	}
	c.errors = map[string]int64{}
	if given.once || given.mode != "stream" {
		c.latencies = make([]time.Duration, 0, 1<<16)
	}
	reader := bufio.NewReaderSize(socket, 64<<10)
	c.framer = http2.NewFramer(c.writer, reader)
	c.framer.SetReuseFrames()
	c.decoder = hpack.NewDecoder(4096, func(field hpack.HeaderField) {
		if c.decoding == nil {
			return
		}
		switch field.Name {
		case ":status":
			if field.Value != "200" {
				c.decoding.status = "HTTP " + field.Value
			}
		case "grpc-status":
			c.decoding.status = field.Value
		}
	})
	if err := c.converse(reader); err != nil && phase.Load() != ending {
		// What was in flight has no answer.
		c.errors[err.Error()] += int64(max(1, len(c.calls)))
	}
	return c.result
}

func dial(given options) (net.Conn, error) {
	giveUp := time.Now().Add(time.Minute)
	for {
		socket, err := net.Dial("tcp", given.address)
		if err == nil || !given.wait || time.Now().After(giveUp) {
			return socket, err
		}
		time.Sleep(time.Millisecond)
	}
}

func (c *connection) converse(reader *bufio.Reader) error {
	if _, err := io.WriteString(c.writer, http2.ClientPreface); err != nil {
		return err
	}
	if err := c.framer.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: receiveWindow},
	); err != nil {
		return err
	}
	if err := c.framer.WriteWindowUpdate(0, receiveWindow-65535); err != nil {
		return err
	}
	for {
		if err := c.fill(); err != nil {
			return err
		}
		if len(c.calls) == 0 && (c.dry || phase.Load() == ending) {
			return c.writer.Flush()
		}
		if reader.Buffered() == 0 {
			if err := c.writer.Flush(); err != nil {
				return err
			}
		}
		if phase.Load() == ending && c.mode == "stream" {
			return nil
		}
		if err := c.receive(); err != nil {
			return err
		}
	}
}

// fill sends as much as may be in flight.
func (c *connection) fill() error {
	if c.mode == "stream" {
		return c.fillStream()
	}
	for len(c.calls) < c.inFlight && c.window > maxFrame && !c.dry && phase.Load() != ending {
		message := c.source()
		if message == nil {
			c.dry = true
			return nil
		}
		if err := c.open(message, true); err != nil {
			return err
		}
	}
	return nil
}

func (c *connection) fillStream() error {
	for len(c.sentAt) < c.inFlight && c.window > maxFrame && phase.Load() != ending {
		message := c.source()
		c.sentAt = append(c.sentAt, time.Now())
		if len(c.calls) == 0 {
			if err := c.open(message, false); err != nil {
				return err
			}
			continue
		}
		only := c.calls[1]
		if only.window < int64(len(message)+5) {
			c.sentAt = c.sentAt[:len(c.sentAt)-1]
			return nil
		}
		if err := c.send(only, message, false); err != nil {
			return err
		}
	}
	return nil
}

func (c *connection) open(message []byte, end bool) error {
	opened := &call{}
	if len(c.free) > 0 {
		opened = c.free[len(c.free)-1]
		c.free = c.free[:len(c.free)-1]
		*opened = call{received: opened.received[:0]}
	}
	opened.id, opened.sent, opened.window = c.nextID, time.Now(), c.streamWindow
	c.nextID += 2
	c.calls[opened.id] = opened
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: opened.id, BlockFragment: c.encodedHeaders(), EndHeaders: true,
	}); err != nil {
		return err
	}
	return c.send(opened, message, end)
}

// encodedHeaders is the header block of every call: once the first two taught the server's table, all of it is indexed.
func (c *connection) encodedHeaders() []byte {
	if c.nextID > 5 && c.headerBlock != nil {
		return c.headerBlock
	}
	if c.encoder == nil {
		c.encoder = hpack.NewEncoder(&c.encoded)
	}
	c.encoded.Reset()
	fields := [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", c.path}, {":authority", c.address},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	}
	for _, header := range c.headers {
		name, value, _ := strings.Cut(header, ":")
		fields = append(fields, [2]string{strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)})
	}
	for _, field := range fields {
		_ = c.encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	c.headerBlock = append([]byte(nil), c.encoded.Bytes()...)
	return c.headerBlock
}

func (c *connection) send(opened *call, message []byte, end bool) error {
	size := len(message) + 5
	if size > maxFrame {
		return fmt.Errorf("a message of %d bytes needs more than one frame", len(message))
	}
	c.window -= int64(size)
	opened.window -= int64(size)
	c.frame = append(c.frame[:0], 0)
	c.frame = binary.BigEndian.AppendUint32(c.frame, uint32(len(message)))
	c.frame = append(c.frame, message...)
	return c.framer.WriteData(opened.id, end, c.frame)
}

func (c *connection) receive() error {
	frame, err := c.framer.ReadFrame()
	if err != nil {
		return err
	}
	switch frame := frame.(type) {
	case *http2.DataFrame:
		return c.data(frame)
	case *http2.HeadersFrame:
		if !frame.HeadersEnded() {
			return errors.New("CONTINUATION is not understood here")
		}
		return c.headersReceived(frame)
	case *http2.SettingsFrame:
		if frame.IsAck() {
			return nil
		}
		if size, ok := frame.Value(http2.SettingInitialWindowSize); ok {
			for _, open := range c.calls {
				open.window += int64(size) - c.streamWindow
			}
			c.streamWindow = int64(size)
		}
		return c.framer.WriteSettingsAck()
	case *http2.WindowUpdateFrame:
		if frame.StreamID == 0 {
			c.window += int64(frame.Increment)
		} else if open := c.calls[frame.StreamID]; open != nil {
			open.window += int64(frame.Increment)
		}
	case *http2.PingFrame:
		if !frame.IsAck() {
			return c.framer.WritePing(true, frame.Data)
		}
	case *http2.RSTStreamFrame:
		if open := c.calls[frame.StreamID]; open != nil {
			open.status = "reset: " + frame.ErrCode.String()
			c.finish(open)
		}
	case *http2.GoAwayFrame:
		return errors.New("GOAWAY: " + frame.ErrCode.String())
	}
	return nil
}

func (c *connection) data(frame *http2.DataFrame) error {
	size := frame.Length
	if c.unreturned += size; c.unreturned > receiveWindow/2 {
		if err := c.framer.WriteWindowUpdate(0, c.unreturned); err != nil {
			return err
		}
		c.unreturned = 0
	}
	open := c.calls[frame.StreamID]
	if open == nil {
		return nil
	}
	open.received = append(open.received, frame.Data()...)
	if c.mode == "stream" {
		if c.streamUnreturned += size; c.streamUnreturned > receiveWindow/2 {
			if err := c.framer.WriteWindowUpdate(frame.StreamID, c.streamUnreturned); err != nil {
				return err
			}
			c.streamUnreturned = 0
		}
		c.takeMessages(open)
	}
	if frame.StreamEnded() {
		c.finish(open)
	}
	return nil
}

// takeMessages counts the whole messages of the stream: their order is that of the requests.
func (c *connection) takeMessages(open *call) {
	rest := open.received
	for len(rest) >= 5 {
		size := int(binary.BigEndian.Uint32(rest[1:5]))
		if len(rest) < 5+size {
			break
		}
		if len(c.sentAt) > 0 {
			c.count(c.isExpected(rest[5:5+size]), time.Since(c.sentAt[0]))
			c.sentAt = c.sentAt[1:]
		}
		rest = rest[5+size:]
	}
	open.received = append(open.received[:0], rest...)
}

func (c *connection) headersReceived(frame *http2.HeadersFrame) error {
	open := c.calls[frame.StreamID]
	c.decoding = open
	if _, err := c.decoder.Write(frame.HeaderBlockFragment()); err != nil {
		return err
	}
	if err := c.decoder.Close(); err != nil {
		return err
	}
	if open != nil && frame.StreamEnded() {
		c.finish(open)
	}
	return nil
}

func (c *connection) finish(open *call) {
	delete(c.calls, open.id)
	if c.mode == "stream" {
		if phase.Load() != ending {
			c.errors["the stream ended with "+open.status]++
		}
		c.dry = true
		return
	}
	if open.status != "0" {
		if phase.Load() == measuring {
			c.errors["status "+open.status]++
		}
	} else {
		message := open.received
		whole := len(message) >= 5 && int(binary.BigEndian.Uint32(message[1:5])) == len(message)-5
		c.count(whole && c.isExpected(message[5:]), time.Since(open.sent))
	}
	c.free = append(c.free, open)
}

func (c *connection) isExpected(message []byte) bool {
	return len(message) >= c.expectAt && bytes.HasPrefix(message[c.expectAt:], c.expect)
}

func (c *connection) count(good bool, latency time.Duration) {
	if phase.Load() != measuring {
		return
	}
	c.answers++
	if !good {
		c.unexpected++
	}
	c.latencies = append(c.latencies, latency)
}

func report(results []result, seconds float64) {
	var answers, unexpected int64
	failures := map[string]int64{}
	var latencies []time.Duration
	for _, one := range results {
		answers += one.answers
		unexpected += one.unexpected
		latencies = append(latencies, one.latencies...)
		for text, count := range one.errors {
			failures[text] += count
		}
	}
	sort.Slice(latencies, func(a, b int) bool { return latencies[a] < latencies[b] })
	at := func(share float64) float64 {
		if len(latencies) == 0 {
			return 0
		}
		index := min(len(latencies)-1, int(share*float64(len(latencies))))
		return float64(latencies[index].Microseconds()) / 1000
	}
	line, _ := json.Marshal(map[string]any{
		"event": "result", "answers": answers, "unexpected": unexpected, "errors": failures, "seconds": seconds,
		"p50Ms": at(0.5), "p99Ms": at(0.99), "maxMs": at(1),
	})
	fmt.Println(string(line))
}

func event(name string) { fmt.Printf("{\"event\":%q}\n", name) }

func fail(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}
