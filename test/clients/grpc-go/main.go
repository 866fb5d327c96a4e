// grpc-go asks the service; ../README.md says what it prints. The messages are written by hand, so that no protoc is needed.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	service = "/latchkey.v1.ApiKeyService/"
	lanes   = 30
	calls   = 300
)

// bytesCodec sends and receives messages as their bytes.
type bytesCodec struct{}

func (bytesCodec) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (bytesCodec) Name() string { return "proto" }
func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

// find gives the value of a message's first field of this number: bytes of one that has a length, else nil and the number.
func find(message []byte, wanted protowire.Number) ([]byte, uint64) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		message = message[n:]
		size := protowire.ConsumeFieldValue(number, kind, message)
		if number == wanted && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			return value, 0
		}
		if number == wanted {
			value, _ := protowire.ConsumeVarint(message)
			return nil, value
		}
		message = message[size:]
	}
	return nil, 0
}

var printing sync.Mutex

func show(line any) {
	text, _ := json.Marshal(line)
	printing.Lock()
	defer printing.Unlock()
	fmt.Println(string(text))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// name writes a code as gRPC's documents do.
func name(err error) string {
	names := map[codes.Code]string{
		codes.OK: "OK", codes.Canceled: "CANCELLED", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
		codes.InvalidArgument: "INVALID_ARGUMENT", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	}
	if found, ok := names[status.Code(err)]; ok {
		return found
	}
	return status.Code(err).String()
}

type client struct {
	connection   *grpc.ClientConn
	key          string
	serviceToken string
}

func as(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func (c *client) verify() (uint64, error) {
	ctx, cancel := context.WithTimeout(as(context.Background(), c.serviceToken), time.Minute)
	defer cancel()
	request, answer := field(1, []byte(c.key)), []byte{}
	err := c.connection.Invoke(ctx, service+"Verify", &request, &answer)
	_, outcome := find(answer, 1)
	return outcome, err
}

func (c *client) open(ctx context.Context, method string, desc *grpc.StreamDesc, requests ...[]byte) (grpc.ClientStream, error) {
	stream, err := c.connection.NewStream(as(ctx, c.serviceToken), desc, service+method)
	if err != nil {
		return nil, err
	}
	for _, request := range requests {
		if err := stream.SendMsg(&request); err != nil {
			return nil, err
		}
	}
	return stream, stream.CloseSend()
}

// watch gives what a Watch ended with.
func (c *client) watch(ctx context.Context, onMessage func()) error {
	stream, err := c.open(ctx, "Watch", &grpc.StreamDesc{ServerStreams: true}, []byte{})
	for err == nil {
		var answer []byte
		if err = stream.RecvMsg(&answer); err == nil {
			onMessage()
		}
	}
	return err
}

func main() {
	if len(os.Args) != 6 {
		fail(fmt.Errorf("usage: %s host:port CA KEY SERVICE-TOKEN USER-TOKEN", os.Args[0]))
	}
	address, ca, key, serviceToken, userToken := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	wire := insecure.NewCredentials()
	if ca != "-" {
		var err error
		wire, err = credentials.NewClientTLSFromFile(ca, "")
		fail(err)
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(wire),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{})))
	fail(err)
	c := &client{connection, key, serviceToken}

	outcome, err := c.verify()
	fail(err)
	show(map[string]string{"verify": fmt.Sprint(outcome)})

	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	show(map[string]string{"deadline": name(c.watch(ctx, func() {}))})
	cancel()

	request, answer := field(2, []byte("no scope")), []byte{}
	err = connection.Invoke(as(context.Background(), userToken), service+"Create", &request, &answer)
	reason := ""
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = info.Reason
		}
	}
	show(map[string]string{"details": name(err) + " " + reason})

	message := field(1, field(1, []byte(key)))
	stream, err := c.open(context.Background(), "VerifyStream",
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, message, message, message)
	fail(err)
	outcomes := []string{}
	for {
		var answer []byte
		if err = stream.RecvMsg(&answer); err != nil {
			break
		}
		result, _ := find(answer, 1)
		response, _ := find(result, 1)
		_, outcome := find(response, 1)
		outcomes = append(outcomes, fmt.Sprint(outcome))
	}
	if err != io.EOF {
		fail(err)
	}
	show(map[string]string{"stream": strings.Join(outcomes, " ")})

	ctx, cancel = context.WithCancel(context.Background())
	cancelled := name(c.watch(ctx, cancel))
	_, err = c.verify()
	fail(err)
	show(map[string]string{"cancellation": cancelled})

	c.load()
}

type counts struct {
	Answered int            `json:"answered"`
	Refused  int            `json:"refused"`
	Failed   map[string]int `json:"failed"`
}

func (c *client) load() {
	seen := counts{Failed: map[string]int{}}
	end := -1
	var lock sync.Mutex
	var running sync.WaitGroup
	lane := func() {
		defer running.Done()
		for {
			outcome, err := c.verify()
			refused := err != nil && strings.Contains(err.Error(), "connection refused")
			lock.Lock()
			switch {
			case refused:
				seen.Refused++
			case err != nil:
				seen.Failed[name(err)+": "+status.Convert(err).Message()]++
			case outcome != 1:
				seen.Failed[fmt.Sprint("outcome ", outcome)]++
			default:
				seen.Answered++
				if seen.Answered == calls {
					show(map[string]bool{"loaded": true})
				}
			}
			done := end >= 0 && seen.Answered >= end
			lock.Unlock()
			if done {
				return
			}
			if refused {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	for range lanes {
		running.Add(1)
		go lane()
	}
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		lock.Lock()
		end = seen.Answered + calls
		lock.Unlock()
	}()
	running.Wait()
	show(seen)
}
